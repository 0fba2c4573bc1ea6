"""Every layout that the builders of the formats know, by name."""

import builders_coco
import builders_hub
import builders_voc
import builders_yolo
from builders_formats import REGISTRY

PARTS = (builders_coco, builders_yolo, builders_voc, builders_hub)  # each has registered its own as it was imported
LAYOUTS = REGISTRY
