"""The unmodified `vllm serve DIR --omni` on a CPU: for tests, and for measurements on small releases.

    make install-server                                           # once: 4 GB
    python -m experiments.cpu_server DIR --port 8000              # serves until Ctrl-C

`plugin/` is in the PYTHONPATH of the server's processes.
"""
