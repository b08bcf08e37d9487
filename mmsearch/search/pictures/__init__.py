"""What a trial's training looked like, as two small pictures: its curves, and its confusions on the validation rows.

Drawn with Pillow, in its own font, so that a worker needs nothing else and two trainings of the same numbers leave the
same bytes. The dashboard shows pictures 200 by 150 pixels large: they have that shape, few words, and large ones.
Colours are told apart with any colour vision (after Okabe and Ito, "Color universal design", 2008).
"""
