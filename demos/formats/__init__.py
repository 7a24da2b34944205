"""Demonstrations in the formats of others, read episode by episode in constant memory: robomimic, Diffusion Policy, RLDS, LeRobot v2."""

from demos.formats.source import Choice, Episode, Source, kind_of, open_source, transfer

__all__ = ["Choice", "Episode", "Source", "kind_of", "open_source", "transfer"]
