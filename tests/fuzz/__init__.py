"""Decoders of strangers' bytes, each as one function: searched by ``make fuzz``, replayed by the tests."""
