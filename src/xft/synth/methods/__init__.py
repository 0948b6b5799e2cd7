"""METHODS: how seeds become pairs. Importing this registers all of them."""

from xft.synth.methods import evol_instruct, instruct_pretrain, oss_instruct, self_instruct
from xft.synth.methods.method import METHODS, Frame, Method

__all__ = ["METHODS", "Frame", "Method", "evol_instruct", "instruct_pretrain", "oss_instruct", "self_instruct"]
