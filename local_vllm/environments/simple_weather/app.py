"""One tool, `get_weather`, and a reward for asking it about the right cities and telling what it said.

The weather is made up from the city's name: the same city always has the same.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

from pydantic import BaseModel, Field

from local_vllm.environments import ResourcesServer, Rollout, ToolError, Verdict, tool

SKIES = ("sunny", "cloudy", "rainy", "foggy", "windy", "snowy")


class WeatherRow(BaseModel):
    """What a row has to hold."""

    expected_cities: list[str] = Field(min_length=1)


class Weather(BaseModel):
    """What the tool answers."""

    city: str
    temperature: int
    unit: Literal["celsius", "fahrenheit"]
    sky: str


class SimpleWeather(ResourcesServer):
    Row = WeatherRow

    @tool
    async def get_weather(self, city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> Weather:
        """The weather in a city, now.

        Args:
            city: Name of the city, such as Paris.
            unit: Unit of the temperature.
        """
        if not city.strip():
            raise ToolError("city is empty: name one, such as Paris.")
        celsius, sky = weather_in(city)
        temperature = celsius if unit == "celsius" else round(celsius * 9 / 5 + 32)
        return Weather(city=city, temperature=temperature, unit=unit, sky=sky)

    async def verify(self, rollout: Rollout[WeatherRow, dict[str, Any]]) -> Verdict:
        """The share of the expected cities that were asked about and whose temperature was told."""
        asked = {_name(call.arguments.get("city")) for call in rollout.calls if call.arguments is not None}
        told = set(re.findall(r"-?\d+", rollout.text.replace("\N{MINUS SIGN}", "-")))
        cities = rollout.row.expected_cities
        right = [city for city in cities if _name(city) in asked and told & _temperatures(city)]
        return Verdict(reward=len(right) / len(cities), cities_asked=sorted(asked), cities_right=right)


def weather_in(city: str) -> tuple[int, str]:
    """Degrees Celsius from -9 to 34, and the sky."""
    digest = hashlib.blake2b(_name(city).encode(), digest_size=4).digest()
    return digest[0] % 44 - 9, SKIES[digest[1] % len(SKIES)]


def _temperatures(city: str) -> set[str]:
    celsius, _ = weather_in(city)
    return {str(celsius), str(round(celsius * 9 / 5 + 32))}


def _name(city: object) -> str:
    return " ".join(str(city).casefold().split())
