"""The tuning database: what was measured of each search for a schedule, in files that anybody can
read without TVM. The stage that searches writes them; `tapml db` looks after them.
"""
