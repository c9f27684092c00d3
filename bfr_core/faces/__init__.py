"""Faces as places in a photo: find, align, find landmarks, recognise, parse and paste them."""
