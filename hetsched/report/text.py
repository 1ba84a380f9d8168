"""Numbers and tables as text, by the name that reports know them by."""

from hetsched.text import bytes_text, cut, percent_text, plural, seconds_text, shorten, table

__all__ = ["bytes_text", "cut", "percent_text", "plural", "seconds_text", "shorten", "table"]
