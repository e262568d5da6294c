"""To come."""


def files(facts):
    raise NotImplementedError
