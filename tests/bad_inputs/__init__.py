"""Files, folders and flags as one may get them by accident or malice, each with what reads it.

Each module has `CASES`: groups of {what is wrong: a function of an empty folder that makes it there
and reads it}.
"""
