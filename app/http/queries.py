"""Query parameters: those that a path does not have are refused, since whoever sends one expects it to do something."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError


async def refuse_unknown_query(request: Request) -> None:
    """
    A dependency of every route.

    Raises:
        RequestValidationError: the query has a parameter that the OpenAPI document does not name for this operation.
    """
    if not request.scope["query_string"] or not request.scope["route"].include_in_schema:
        return  # pages for people have no description
    known = _known_parameters(request.app, request.scope["route"].path_format, request.method)
    unknown = dict.fromkeys(name for name in request.query_params if name not in known)
    if unknown:
        said = f"no parameter of this path; known: {', '.join(sorted(known)) or 'none'}"
        raise RequestValidationError(
            [{"type": "extra_forbidden", "loc": ("query", name), "msg": f"{name!r} is {said}"} for name in unknown]
        )


def _known_parameters(app: FastAPI, path: str, method: str) -> set[str]:
    operation = app.openapi()["paths"].get(path, {}).get(method.lower(), {})
    return {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"}
