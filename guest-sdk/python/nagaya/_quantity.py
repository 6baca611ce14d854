"""Quantities of Kubernetes (`100m`, `1.5Gi`, `2e3`), exact."""

import re

_TEXT = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i)?)", re.ASCII)
_TENS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_TWOS = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def quantity(text):
    """A quantity in billionths, which is as fine as Kubernetes knows it; finer parts are rounded up, as there."""
    match = _TEXT.fullmatch(str(text))
    sign, whole, part, exponent, suffix = match.groups(default="") if match else ("", "", "", "", "")
    if not whole and not part:
        raise ValueError(f"{text!r} is no quantity")
    above, below = int(whole + part) * 10**9, 10 ** len(part)
    if suffix in _TWOS:
        above <<= _TWOS[suffix]
    else:
        power = int(exponent) if exponent else _TENS[suffix]
        above, below = above * 10 ** max(power, 0), below * 10 ** max(-power, 0)
    nano = -(-above // below)
    return -nano if sign == "-" else nano
