"""What a DICOM header says of grey levels: LUTs, rescale, windows, padding, and which is white.

Empty elements are absent, and what cannot be is passed over with a note.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

from jaxdet import InputError
from jaxdet.data import grey

PADDED = "padding is left out of the range of greys, and black"
BEYOND = "values that the bits stored cannot have are taken for padding, and black"
BITS_ABOVE = "bits above those stored are in use, such as for an overlay, and left out"
BITS_NEEDED = "values need more bits than the header says are stored, and are read with them"
PASSED_OVER = "a window or table of greys that cannot be is passed over"
UNKNOWN_FUNCTION = "a VOILUTFunction that nobody knows is read as LINEAR"
INVERTED = "stored with white as zero, inverted"
PADDINGS = 16  # as many values or fewer beyond the bits stored are no picture, with bits above it
OVERLAY_POSITIONS = [(group << 16) + 0x0102 for group in range(0x6000, 0x6020, 2)]
_BIG_ENDIAN = "1.2.840.10008.1.2.2"


class Greys(NamedTuple):
    """What a header says of the way from stored values to what is seen.

    `modality` and `voi` are tables (the first value, entries); else they are (slope, intercept),
    and a window (function, center, width); or None.
    """

    modality: tuple | None
    voi: tuple | None
    padding: tuple[int, int] | None  # lowest and highest
    stored: tuple[int, int]  # the lowest and the highest value that the bits stored may have
    is_negative: bool
    is_own: bool  # 8 bits that are grey levels already
    has_overlay: bool  # in the bits above those stored, as the header says
    notes: tuple[str, ...]

    def seen(self, values: Float[np.ndarray, "levels"]) -> Float[np.ndarray, "levels"]:
        """What stored values stand for; of 8 bits that are grey levels, from 0 to 255."""
        if self.modality is not None and isinstance(self.modality[1], np.ndarray):
            values = grey.look_up(values, *self.modality)
        elif self.modality is not None:
            values = values * self.modality[0] + self.modality[1]
        if self.voi is None:
            return values
        if isinstance(self.voi[1], np.ndarray):
            return grey.look_up(values, *self.voi)
        return grey.window(values, *self.voi) * (255 if self.is_own else 1)


def read_greys(found: Any) -> Greys:
    """Every element that is about grey levels; empty ones are absent."""
    notes, signed = [], bool(found.PixelRepresentation)
    negative = found.PhotometricInterpretation == "MONOCHROME1"
    if negative:
        notes.append(INVERTED)
    modality = _table(found, "ModalityLUTSequence", signed, notes)
    slope, intercept = (_number(found, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if modality is None and (slope, intercept) not in ((None, None), (1, None), (None, 0), (1, 0)):
        modality = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    voi = _table(found, "VOILUTSequence", signed, notes)
    is_own = found.BitsStored == 8 and not signed and modality is None and voi is None
    voi = _window(found, notes) if voi is None else voi
    bits = found.BitsStored
    stored = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    padding, notes = _padding(found, signed), tuple(dict.fromkeys(notes))
    greys = Greys(modality, voi, padding, stored, negative, is_own, _has_overlay(found), notes)
    # Every step is monotonous between the lowest and the highest value that there may be.
    top = 1 << found.BitsAllocated
    with np.errstate(all="ignore"):
        ends = greys.seen(np.array([-top / 2, top / 2 - 1] if signed else [0.0, top - 1]))
        if modality is not None and not isinstance(modality[1], np.ndarray):
            ends = np.append(ends, top * float(modality[0]) + modality[1])
    if not np.isfinite(ends).all() or abs(ends).max() > 1e300:
        raise InputError("its rescale or window gives grey levels that are no finite numbers")
    return greys


def _table(found: Any, name: str, signed: bool, notes: list[str]) -> tuple | None:
    """The first usable table of a sequence of LUTs: the value of its first entry, and entries."""
    for item in element(found, name) or ():
        try:
            count, first, bits = (int(x) for x in item.get("LUTDescriptor") or ())
            data, count = item.get("LUTData"), count % 65536 or 65536
            if isinstance(data, bytes):
                order = ">" if found.file_meta.TransferSyntaxUID == _BIG_ENDIAN else "<"
                wide = len(data) >= 2 * count
                entries = np.frombuffer(data, f"{order}u2" if wide else np.uint8)
            else:
                entries = np.atleast_1d(np.asarray(data, np.int64)) % 65536
                if len(entries) < count and bits <= 8:  # two in a word
                    entries = np.frombuffer(entries.astype("<u2").tobytes(), np.uint8)
        except Exception:  # pydicom raises whatever it runs into
            entries, count = (), 1
        if len(entries) < count:
            notes.append(PASSED_OVER)
            continue
        return first - 65536 if signed and first > 32767 else first, entries[:count]
    return None


def _window(found: Any, notes: list[str]) -> tuple[str, float, float] | None:
    """The first usable window: its function, center and width."""
    function = str(element(found, "VOILUTFunction") or "LINEAR").strip().upper()
    pairs = []
    for name in ("WindowCenter", "WindowWidth"):
        try:
            value = found.get(name)
            values = [value] if isinstance(value, str | float | int) else list(value or ())
            pairs.append([float(x) if str(x).strip() else math.nan for x in values])
        except Exception:
            pairs.append([math.nan])
    centers, widths = pairs
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        if centers and widths:
            notes.append(UNKNOWN_FUNCTION)
        function = "LINEAR"
    for center, width in zip(centers, widths, strict=False):
        small = width >= 1 if function == "LINEAR" else width > 1e-6
        if small and width < 1e12 and abs(center) < 1e12:
            return function, center, width
        notes.append(PASSED_OVER)
    return None


def _has_overlay(found: Any) -> bool:
    """Whether an overlay plane (PS3.3 C.9.2 of 2004 and before) is in the bits above those stored;
    one with data of its own has the position 0."""
    for element_of in OVERLAY_POSITIONS:
        try:
            if int(found[element_of].value) >= found.BitsStored:
                return True
        except Exception:  # there is none, or pydicom raises whatever it runs into
            continue
    return False


def _padding(found: Any, signed: bool) -> tuple[int, int] | None:
    """The lowest and the highest stored value that is no picture."""
    ends = []
    for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        try:
            value = int(found.get(name))
        except Exception:
            break  # without a value a limit says nothing
        if signed and value > 32767:  # written as if unsigned, or the other way round
            value -= 65536
        elif not signed and value < 0:
            value += 65536
        ends.append(value)
    return (min(ends), max(ends)) if ends else None


def _is_padding(greys: Greys, values: Int[np.ndarray, "values"]) -> Bool[np.ndarray, "values"]:
    if greys.padding is None:
        return np.zeros(len(values), bool)
    return (values >= greys.padding[0]) & (values <= greys.padding[1])


def _is_beyond(
    greys: Greys, values: Int[np.ndarray, "values"], counts: Int[np.ndarray, "values"]
) -> Bool[np.ndarray, "values"]:
    """Which values that pixels have are none that the bits stored can have, nor padding."""
    least, most = greys.stored
    return ((values < least) | (values > most)) & ~_is_padding(greys, values) & (counts > 0)


def _cut(greys: Greys, values: Int[np.ndarray, "values"]) -> Int[np.ndarray, "values"]:
    """Values without the bits above those stored."""
    least, most = greys.stored
    return (values - least) % (most - least + 1) + least


def with_bits_needed(
    greys: Greys,
    stored: Integer[np.ndarray, "height width"],
    low: int,
    counts: Int[np.ndarray, "values"],
) -> Greys:
    """The same, or with a range that holds all values, where BitsStored is too small for the film.

    What is in the bits above is told by its neighbours: a film of more bits goes on smoothly from
    4095 to 4096, where cutting off bits makes a step to 0; an overlay there makes steps that
    cutting it off removes. So of pixels beside or below each other that differ in these bits, those
    count that are nearer as they are, and those that are nearer without. Where the header says that
    an overlay is there, it is.
    """
    values = np.arange(low, low + len(counts))
    beyond = _is_beyond(greys, values, counts)
    if greys.has_overlay or np.count_nonzero(beyond) <= PADDINGS:
        return greys
    cut = _cut(greys, values)
    above = values - cut
    is_none = _is_padding(greys, values) | _is_padding(greys, cut)
    nearer = {True: 0, False: 0}  # with the bits above, and without
    before = np.empty(0, np.int64)
    for row in stored:  # as a whole it would take 8 bytes a pixel
        at = row.astype(np.int64) - low
        for a, b in ((at[:-1], at[1:]), (before, at[: len(before)])):
            differ = (above[a] != above[b]) & ~is_none[a] & ~is_none[b]
            a, b = a[differ], b[differ]
            whole, part = abs(values[a] - values[b]), abs(cut[a] - cut[b])
            nearer[True] += np.count_nonzero(whole < part)
            nearer[False] += np.count_nonzero(part < whole)
        before = at
    if nearer[True] <= nearer[False]:
        return greys
    there = values[(counts > 0) & ~_is_padding(greys, values)]
    share = counts[beyond].sum() / counts.sum()
    return greys._replace(
        stored=(min(greys.stored[0], there[0]), max(greys.stored[1], there[-1])),
        is_own=False,
        notes=(*greys.notes, grey.note(BITS_NEEDED, share)),
    )


def grey_of_values(
    greys: Greys, low: int, counts: Int[np.ndarray, "values"]
) -> tuple[UInt8[np.ndarray, "values"], tuple[str, ...]]:
    """The grey level of each stored value from `low` on, and notes; `counts` of pixels have each.

    Each step maps values one by one, so it is done for the values rather than for the pixels.
    """
    values, notes, whole = np.arange(low, low + len(counts)), [], counts.sum()
    no_picture = padded = _is_padding(greys, values)
    # A few values beyond the bits stored, such as 65535 and 32768, are padding without a tag. Many
    # are those of the picture with something in the bits above, such as an overlay.
    beyond = _is_beyond(greys, values, counts)
    if share := counts[beyond].sum() / whole:
        few = np.count_nonzero(beyond) <= PADDINGS
        notes.append(grey.note(BEYOND if few else BITS_ABOVE, share))
        if few:
            no_picture = padded | beyond
        else:
            values = _cut(greys, values)
            # Padding too may have an overlay over it, or no sign in the bits above.
            no_picture = padded = padded | _is_padding(greys, values)
    if share := counts[padded].sum() / whole:
        notes.insert(0, grey.note(PADDED, share))
    counted = np.where(no_picture, 0, counts)
    if not counted.any():
        return np.zeros(len(values), np.uint8), tuple(notes)
    seen = greys.seen(values.astype(np.float64))
    darkest, brightest = (0, 255) if greys.is_own else grey.usual_range(seen, counted)
    if extreme := counted[(seen < darkest) | (seen > brightest)].sum() / whole:
        notes.append(grey.note(grey.EXTREME, extreme))
    if greys.is_negative:
        seen, darkest, brightest = -seen, -brightest, -darkest
    span = brightest - darkest or 1
    table = np.clip((seen - darkest) * 255 / span + 0.5, 0, 255).astype(np.uint8)
    table[no_picture] = 0
    return table, tuple(notes)


def element(found: Any, name: str) -> Any:
    """What a header has, or None; pydicom reads it now, and raises whatever it runs into.

    Raises:
        InputError: for what cannot be read.
    """
    try:
        return found.get(name)
    except Exception as error:
        reason = " ".join(str(error).split())[:60]
        raise InputError(f"the header's {name} cannot be read ({reason})") from error


def _number(found: Any, name: str) -> float | None:
    """A finite number of the header; None where it is missing or empty."""
    value = element(found, name)
    if value is None or value == "" or str(value).strip() == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"the header's {name} is {shown(value)}, not a number") from error
    if not math.isfinite(number):
        raise InputError(f"the header's {name} is {shown(value)}, not a finite number")
    return number


def shown(value: Any) -> str:
    """Whatever a header holds: short, and on one line."""
    text = str(value)[:60]
    return text if text.isprintable() else repr(text)
