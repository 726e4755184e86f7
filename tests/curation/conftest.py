"""Pictures made by a program for all of this folder."""

from support.picture_fixtures import folder_of, pictures

__all__ = ["folder_of", "pictures"]
