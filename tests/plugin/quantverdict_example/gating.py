"""A gate rule: a build, its row of the matrix and the gate's options in, a status and its reason out."""


def max_build_gb(_cell, row, options):
    size = None if row is None else row.value("file_bytes")
    if size is None:
        return "not_measured", "the size of the build is not known"
    limit = options["gb"]
    return ("passed" if size <= limit * 10**9 else "failed"), f"{float(size) / 1e9:.2f} GB, at most {limit} GB"
