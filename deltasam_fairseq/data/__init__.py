"""From text to what fairseq reads; fairseq itself is only called as a program."""
