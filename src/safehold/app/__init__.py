"""Use-cases: one function each, called alike by the command line and by anything else. Results are data; nothing
here prints.
"""
