"""Faults under load, and the judgement whether anything was lost or came twice."""
