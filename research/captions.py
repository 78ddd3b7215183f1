"""Captions of Earth views, made from facts: what the embedded model learns words from.

A caption is a sentence about one to five facts of a view (:mod:`research.geo_targets`): "a hot desert climate in
Algeria", "mountains near Kathmandu, South Asia", "land on the coast, in the tropics". Templates and words are drawn
at random, the same for the same seed.

**What the model is not told.** The queries that measure it (:mod:`research.text_queries`) use words
that occur in no caption: :data:`HELD_OUT`. Captions name countries, queries name peoples ("Mongolian"), landscapes
("tundra", "jungle", "dunes") or regions ("Sahara", "Patagonia"). So a hit shows that the sentence encoder's
knowledge of words, not a list learned by heart, reaches the map. Names of countries and cities with such a word in
them ("Western Sahara") are left out of captions; a test proves that no caption and no template holds one.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from research.geo_targets import Facts, facts_of

__all__ = ["HELD_OUT", "captions", "held_out_in"]

_HELD_OUT = (
    "acacia alaska alpacas alpine amazon amazonian anatolia anatolian andean andes arabian arabs argentine "
    "argentinian atacama australian badlands baobab baobabs bazaar bedouin bison boreal borneo brazilian bush "
    "bushland cactus camel camels canadian caribou carpets caucasus chaco chilean chinese coffee colombian "
    "congolese dune dunes egyptian emperors eskimo ethiopian eucalyptus finnish fjord fjords french gaucho "
    "gauchos german glacier glaciers gobi greenlandic grove groves herd himalaya himalayan himalayas hunters "
    "iberia iberian iceberg icebergs icecap icelandic indian indonesian inuit iranian italian japanese jungle "
    "jungles kalahari kangaroo kangaroos kazakh kenyan lapland larch libyan llama llamas malagasy mexican "
    "monasteries mongol mongolian monsoon moroccan namib namibian nigerian nile nomads norwegian oases oasis "
    "olive olives orangutan orangutans outback pakistani palm palms pampas panda pandas parrots patagonia "
    "patagonian penguins permafrost persia persian peruvian pharaohs polish prairie prairies rainforest "
    "rainforests reindeer russian sahara saharan sahel sami samurai sand sands sandy saudis savanna savannah "
    "savannahs savannas scandinavia scandinavian siberia siberian spanish spruce steppe steppes sudanese sultan "
    "swedish taiga thai tibet tibetan tsar tuareg tundra turkish ukrainian veld vietnamese villa village villages "
    "vineyards wheat yurt yurts"
)
HELD_OUT = frozenset(_HELD_OUT.split())
"""Words kept for the queries that measure the model: in no caption."""

_CLIMATES: dict[str, tuple[str, ...]] = {
    "Af": ("a wet tropical climate", "a tropical climate that is rainy all year", "a hot and wet climate"),
    "Am": ("a tropical climate with a short dry season", "a tropical climate with very heavy rains"),
    "Aw": ("a tropical climate with a dry winter", "a hot climate with a wet and a dry season"),
    "As": ("a tropical climate with a dry summer", "a hot climate with a wet and a dry season"),
    "BSh": ("a hot semi-arid climate", "a hot and rather dry climate"),
    "BSk": ("a cold semi-arid climate", "a cool and rather dry climate"),
    "BWh": ("a hot desert climate", "a very hot and dry climate", "a hot arid climate"),
    "BWk": ("a cold desert climate", "a cold and very dry climate", "a cold arid climate"),
    "Cfa": ("a humid subtropical climate", "a climate with hot, humid summers and mild winters"),
    "Cfb": ("a mild oceanic climate", "a temperate climate with rain all year"),
    "Cfc": ("a cool oceanic climate", "a temperate climate with short, cool summers"),
    "Csa": ("a Mediterranean climate", "a climate with hot, dry summers and mild, wet winters"),
    "Csb": ("a mild Mediterranean climate", "a climate with warm, dry summers and wet winters"),
    "Csc": ("a cool climate with dry summers",),
    "Cwa": ("a subtropical climate with dry winters", "a climate with hot, rainy summers and dry winters"),
    "Cwb": ("a subtropical highland climate", "a mild mountain climate with dry winters"),
    "Cwc": ("a cold subtropical highland climate",),
    "Dfa": ("a humid continental climate with hot summers", "a climate with hot summers and snowy winters"),
    "Dfb": ("a humid continental climate", "a climate with warm summers and cold, snowy winters"),
    "Dfc": ("a subarctic climate", "a climate with long, very cold winters and short summers"),
    "Dfd": ("an extremely cold subarctic climate", "a climate with extremely cold winters"),
    "Dsa": ("a continental climate with hot, dry summers",),
    "Dsb": ("a continental climate with warm, dry summers",),
    "Dsc": ("a subarctic climate with dry summers",),
    "Dsd": ("an extremely cold subarctic climate with dry summers",),
    "Dwa": ("a continental climate with hot summers and dry winters",),
    "Dwb": ("a continental climate with warm summers and cold, dry winters",),
    "Dwc": ("a subarctic climate with dry winters", "a climate with very cold, dry winters"),
    "Dwd": ("an extremely cold subarctic climate with dry winters",),
    "ET": ("a polar climate with short, cool summers", "a climate too cold for trees", "an arctic climate"),
    "EF": ("a climate of lasting ice", "a climate that is frozen all year"),
}
_LANDS: dict[str, tuple[str, ...]] = {
    "Af": ("dense tropical forest", "wet green forest", "evergreen tropical trees"),
    "Am": ("tropical forest", "lush green tropical land"),
    "A": ("tropical grassland with scattered trees", "tropical woodland", "warm grassland"),
    "BSh": ("hot dry shrubland", "thorny scrub", "dry pasture"),
    "BSk": ("dry grassland", "short grass plains", "dry open pasture"),
    "BWh": ("hot desert", "barren desert", "bare dry ground", "a land without water"),
    "BWk": ("cold desert", "barren dry land", "stony desert"),
    "Cs": ("dry shrubland and evergreen trees", "dry sunny hills"),
    "Cw": ("green farmland", "warm woodland"),
    "C": ("mild green land", "farmland and woods", "mixed forest"),
    "Da": ("farmland", "fields and leafy woods"),
    "Db": ("fields and mixed forest", "farmland and woods"),
    "Dc": ("northern conifer forest", "pine and fir forest", "cold northern forest", "snow forest"),
    "ET": ("treeless frozen ground", "moss and lichen", "cold treeless land", "bare arctic land"),
    "EF": ("ice", "snow and ice", "a white land of ice"),
}
_HEIGHTS = {
    "low": ("low plains", "flat low country", "lowland"),
    "high": ("high country", "a high plain", "a plateau"),
    "mountains": ("mountains", "high mountains", "a mountain range", "rugged mountain land"),
}
_COAST = ("on the coast", "by the sea", "at the seaside", "along the shore")
_ISLAND = ("on an island", "surrounded by the sea", "an island in the ocean")
_INLAND = ("far from the sea", "in the interior", "inland")
_LAKES = ("with large lakes", "by a big lake", "full of lakes")

# {place} is where in words of countries and regions; the others are as above. One template may serve all facts in it.
_TEMPLATES: tuple[tuple[str, ...], ...] = (
    (  # one fact
        "{country}",
        "somewhere in {country}",
        "a place in {country}",
        "this is {country}",
        "a view of {country}",
        "a satellite picture of {country}",
        "the land of {country}",
        "{country} from above",
        "we are in {country}",
        "{region}",
        "a place in {region}",
        "somewhere in {region}",
        "a landscape in {region}",
        "{continent}",
        "a view of {continent}",
        "somewhere in {continent}",
        "{climate}",
        "a place with {climate}",
        "land with {climate}",
        "a region of {climate}",
        "{land}",
        "{land}",
        "a landscape of {land}",
        "a view of {land}",
        "a satellite picture of {land}",
        "{land} from above",
        "{height}",
        "a view of {height}",
        "a picture of {height} from above",
        "land {water}",
        "a place {water}",
        "a picture taken {latitude}",
        "a place {latitude}",
        "somewhere {latitude}",
        "near {city}",
        "the country around {city}",
        "a region near {city}",
    ),
    (  # two facts
        "{land} in {country}",
        "{land} in {country}",
        "{climate} in {country}",
        "{land} in {region}",
        "{climate} in {region}",
        "{land} in {continent}",
        "{climate} in {continent}",
        "{height} in {country}",
        "{height} in {region}",
        "{height} in {continent}",
        "{country}, {water}",
        "a place in {country}, {water}",
        "{region}, {water}",
        "{country}, {region}",
        "{country} in {continent}",
        "near {city}, {country}",
        "{city}, {country}",
        "{land} near {city}",
        "{land}, {water}",
        "{land} {latitude}",
        "{climate} {latitude}",
        "{height} with {climate}",
        "{height} {latitude}",
        "{height}, {land}",
        "{country}: {land}",
        "{country}, a land of {land}",
        "in {country} with {climate}",
        "a satellite picture of {land} in {country}",
        "a view of {height} in {country}",
        "{land}, {climate}",
        "{country} has {climate}",
        "the {land} of {country}",
        "a place {water} {latitude}",
        "{country}, {latitude}",
    ),
    (  # three and more
        "{land} in {country}, {region}",
        "{climate} in {country}, {continent}",
        "{land} {water} in {country}",
        "{height} in {country}, {region}",
        "{height} and {land} in {country}",
        "{height} and {land} in {region}",
        "a place in {country}, {water}, with {climate}",
        "near {city}, {country}: {land}",
        "{country}, {region}, {water}",
        "{land}, {water}, {latitude}",
        "{climate}, {latitude}, in {continent}",
        "{height} with {climate} in {country}",
        "{height} with {climate} in {continent}",
        "{region}: {land}, {climate}",
        "{land} {latitude}, in {country}",
        "near {city} in {region}, {climate}",
        "{country}: {height}, {land}, {water}",
        "{land} in {country}, {region}, with {climate}",
        "a satellite picture of {country} in {continent}: {land}, {water}",
        "a view {latitude}: {height}, {land}, {climate}",
        "{height} near {city}, {country}, with {climate}, {water}",
        "{country}, {continent}. {land}, {latitude}, {water}.",
    ),
)
_SHARES = (0.35, 0.4, 0.25)  # of captions with one fact, two facts, more
_SLOT = re.compile(r"{(\w+)}")
_SLOTS = {template: _SLOT.findall(template) for group in _TEMPLATES for template in group}
_DRAWS = 10  # numbers drawn for each caption: so many templates and fillers at most


def held_out_in(text: str) -> set[str]:
    """The held-out words in a text."""
    return set(HELD_OUT.intersection(re.findall(r"[a-z]+", text.lower())))


def captions(coordinates: Float[np.ndarray, "n 2"], width_km: Float[np.ndarray, " n"], seed: int = 0) -> list[str]:
    """A caption for each view of the Earth.

    Args:
        coordinates: centres of the views, (lat, lon) in degrees.
        width_km: how wide each is.
        seed: another seed gives other captions of the same facts.

    Raises:
        MissingExtraError: one of the extras ``text``, ``earth`` and ``places`` is not installed.
        CoordinateError: a coordinate that is not on Earth.
    """
    return sentences(facts_of(coordinates, width_km), seed)


def sentences(facts: Facts, seed: int = 0) -> list[str]:
    """A caption for each place that facts are known of; :func:`captions` when the facts are not at hand."""
    draws = np.random.default_rng([seed, 7]).random((len(facts), _DRAWS))
    return [_sentence(_words(facts, row), list(draws[row])) for row in range(len(facts))]


def _sentence(words: dict[str, Sequence[str]], draws: list[float]) -> str:
    group = int(np.searchsorted(np.cumsum(_SHARES)[:-1], draws[0], side="right"))
    for templates in _TEMPLATES[group::-1]:
        fitting = [template for template in templates if all(slot in words for slot in _SLOTS[template])]
        if fitting:
            template = fitting[int(draws[1] * len(fitting))]
            slots = _SLOTS[template]
            fillers = {s: words[s][int(d * len(words[s]))] for s, d in zip(slots, draws[2:], strict=False)}
            return template.format(**fillers)
    raise AssertionError("each place has a latitude, and there is a template for it")


def _words(facts: Facts, row: int) -> dict[str, Sequence[str]]:
    """What may stand in each slot for one place; slots without a fact are not there."""
    words: dict[str, Sequence[str]] = {"latitude": _latitude(float(facts.coordinates[row, 0]))}
    for slot, name in (
        ("country", facts.country[row]),
        ("continent", facts.continent[row]),
        ("region", facts.region[row]),
        ("city", facts.city[row]),
    ):
        if name and not held_out_in(name):
            words[slot] = (name,)
    climate = facts.climate[row]
    if climate:
        words["climate"] = _CLIMATES[climate]
        words["land"] = _LANDS[_land_key(climate)]
    if facts.height[row]:
        words["height"] = _HEIGHTS[facts.height[row]]
    water = _water(float(facts.sea[row]), float(facts.lakes[row]))
    if water:
        words["water"] = water
    return words


def _land_key(climate: str) -> str:
    """The entry of the landscapes that a climate belongs to: the longest beginning there is, D by its summer."""
    if climate[0] == "D":
        return "D" + climate[2].replace("d", "c")
    return next(climate[:n] for n in (3, 2, 1) if climate[:n] in _LANDS)


def _latitude(lat: float) -> tuple[str, ...]:
    south = lat < 0
    side = "south" if south else "north"
    hemisphere = (f"in the {side}ern hemisphere", f"{side} of the equator")
    if abs(lat) < 5:
        return ("near the equator", "on the equator", "in the tropics")
    if abs(lat) < 23.4:
        return ("in the tropics", f"in the {side}ern tropics", *hemisphere)
    if abs(lat) < 35:
        return ("in the subtropics", f"in the {side}ern subtropics", *hemisphere)
    if abs(lat) < 55:
        return ("in the middle latitudes", "in the temperate zone", *hemisphere)
    if abs(lat) < 66.5:
        return (f"in the far {side}", f"in the cold {side}", f"at a high {side}ern latitude")
    return (
        ("in the Antarctic", "near the South Pole")
        if south
        else ("in the Arctic", "north of the Arctic Circle", "in the high north")
    )


def _water(sea: float, lakes: float) -> tuple[str, ...]:
    if sea > 0.7:
        return _ISLAND
    if sea > 0.08:
        return _COAST
    if lakes > 0.06:
        return _LAKES
    return _INLAND if sea == 0 else ()
