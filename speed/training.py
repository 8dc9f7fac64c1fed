"""To be written."""


def rows(quick, rates, args):
    yield from ()
