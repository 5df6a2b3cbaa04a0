"""Six kinds of adapters: a small part is trained, the base stays as it is and can be shared.

What is inserted where stands in `insert`, the formulas in a file for each kind, the folders in `peft_format` and `folder`.
"""
