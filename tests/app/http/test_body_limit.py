"""Bodies over the limit are 413, announced or not."""

import json

import pytest

LIMIT = 2048


def padded(payload, size):
    body = json.dumps(payload("k01 k02")).encode()
    return body + b" " * (size - len(body))


async def in_chunks(content, size=100):
    for start in range(0, len(content), size):
        yield content[start : start + size]


HEADERS = {"Content-Type": "application/json"}


@pytest.mark.parametrize("chunked", [False, True])
def test_the_limit_holds_to_the_byte(serving, payload, chunked):
    client = serving(max_body_bytes=LIMIT)

    def send(size):
        content = padded(payload, size)
        return client.post("/regenerate", content=in_chunks(content) if chunked else content, headers=HEADERS)

    fits, over = send(LIMIT), send(LIMIT + 1)

    assert fits.status_code == 200
    assert over.status_code == 413
    assert over.headers["content-type"] == "application/problem+json"
    assert over.json()["type"] == "urn:taesar:problem:request-too-large"
    assert "TAESAR_MAX_BODY_BYTES" in over.json()["detail"]


def test_an_endless_body_is_refused_without_being_read_to_its_end(serving):
    client = serving(max_body_bytes=LIMIT)
    sent = 0

    async def endless():
        nonlocal sent
        while sent < 100 * LIMIT:
            sent += 512
            yield b" " * 512

    assert client.post("/regenerate", content=endless(), headers=HEADERS).status_code == 413
    assert sent <= 2 * LIMIT


def test_an_announced_length_is_refused_before_a_byte_is_read(serving):
    client = serving(max_body_bytes=LIMIT)
    read = []

    async def never():
        read.append(True)
        yield b"x"

    answer = client.post("/regenerate", content=never(), headers=HEADERS | {"Content-Length": str(LIMIT + 1)})

    assert answer.status_code == 413
    assert read == []
