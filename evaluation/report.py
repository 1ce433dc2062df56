class CurvesError(Exception): pass
def write_report(*a): return "x"
