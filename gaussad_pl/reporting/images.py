"""Galleries of a run, scaled down to be embedded in the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

WIDTH, QUALITY = 760, 72


def data_uri(path: Path) -> str | None:
    """Return an image file as a data URI at most `WIDTH` pixels wide, or None if it is missing or unreadable."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except Exception:  # Pillow's decoders raise almost any exception on broken files
        return None
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
