"""TESTINGS: how solutions in a language are outlined, tested, mutated and run. Importing this registers all of them."""

from xft.synth.testing import javascript, python
from xft.synth.testing.testing import TESTINGS, Suite, Testing

__all__ = ["TESTINGS", "Suite", "Testing", "javascript", "python"]
