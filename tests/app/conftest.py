"""
A small real bundle (random weights, three domains of twenty items), applications that serve it, and databases: SQLite,
and PostgreSQL and Redis that the suite starts itself.
"""

import contextlib
import functools
import itertools

import anyio.from_thread
import httpx
import psycopg
import pytest
import torch

from app.http.application import PARTS, create_app
from app.settings import Settings
from app.storage import schema
from app.storage.database import open_engine
from models.bundle import save_bundle
from models.network.decoder import Decoder, DecoderConfig
from models.vocabulary import Vocabulary
from tests.services import PostgresServer, RedisServer, ServiceMissingError, reachable_folder, require

DOMAINS = ("books", "food", "kitchen")
MAX_LENGTH = 16
NUMBERS = itertools.count()


def make_bundle(directory, *, seed):
    """Write a bundle of random networks; other seeds give other versions and other answers."""
    vocabulary = Vocabulary(DOMAINS, tuple(tuple(f"{domain[0]}{n:02d}" for n in range(20)) for domain in DOMAINS))
    config = DecoderConfig(
        num_items=vocabulary.num_items, width=16, inner_width=16, num_layers=1, num_heads=2, max_length=MAX_LENGTH
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = [Decoder(config) for _ in range(1 + len(DOMAINS))]
        for network in networks:
            for parameter in network.parameters():
                # Trained networks are further apart than initial ones; so small, most decisions would be alike
                parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return save_bundle(
        directory, vocabulary=vocabulary, base=networks[0], experts=networks[1:], provenance={"seed": seed}
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "first", seed=1)


class Client:
    """
    A running application and blocking requests to it, in process.

    Args:
        portal: the event loop's thread, in which the application lives.
        app: the application, its lifespan entered.
    """

    def __init__(self, portal, app):
        self.portal = portal
        self.app = app

    def request(self, method, path, **arguments):
        return self.portal.call(functools.partial(self.request_here, method, path, **arguments))

    def get(self, path, **arguments):
        return self.request("GET", path, **arguments)

    def post(self, path, **arguments):
        return self.request("POST", path, **arguments)

    def together(self, *bodies):
        """POST /regenerate with every body at the same time; the answers in order."""

        async def all_of_them():
            answers = [None] * len(bodies)

            async def one(index):
                answers[index] = await self.request_here("POST", "/regenerate", json=bodies[index])

            async with anyio.create_task_group() as group:
                for index in range(len(bodies)):
                    group.start_soon(one, index)
            return answers

        return self.portal.call(all_of_them)

    async def request_here(self, method, path, **arguments):
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **arguments)


@pytest.fixture
def serving(bundle, tmp_path):
    """A function settings -> running client; ``parts`` replaces the application's parts."""
    with contextlib.ExitStack() as stack:
        portal = stack.enter_context(anyio.from_thread.start_blocking_portal())

        def start(parts=PARTS, **settings):
            defaults = {"bundle": bundle.directory, "device": "cpu", "data": tmp_path / "data"}
            app = create_app(Settings(**(defaults | settings)), parts=parts)
            stack.enter_context(portal.wrap_async_context_manager(app.router.lifespan_context(app)))
            return Client(portal, app)

        yield start


@pytest.fixture
def client(serving):
    return serving()


def payload(*sequences, target="kitchen", **options):
    """A request body; a sequence is a string of item ids whose first letter is their domain's: 'b01 f02 k03'."""
    domains = {domain[0]: domain for domain in DOMAINS}
    return {
        "target_domain": target,
        "sequences": [
            {"user_id": f"u{n}", "items": [{"item_id": i, "domain": domains.get(i[0], "garden")} for i in s.split()]}
            for n, s in enumerate(sequences)
        ],
        **options,
    }


@pytest.fixture(name="payload")
def payload_fixture():
    return payload


@pytest.fixture(name="make_bundle")
def make_bundle_fixture():
    return make_bundle


# -- Databases and Redis


@pytest.fixture(scope="session")
def redis_server():
    """A Redis of our own, running."""
    with reachable_folder() as folder:
        server = RedisServer(folder / "redis")
        try:
            server.start()
        except ServiceMissingError as error:
            require(error)
        yield server
        server.stop()


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL of our own, running, with a migrated database ``template`` to copy."""
    with reachable_folder() as folder:
        server = PostgresServer(folder / "postgres")
        try:
            server.start()
        except ServiceMissingError as error:
            require(error)
        engine = open_engine(server.create_database("migrated"))
        schema.upgrade(engine)
        engine.dispose()
        yield server
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request, tmp_path):
    """URL of a database without any table, once for each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return request.getfixturevalue("postgres_server").create_database(f"empty{next(NUMBERS)}")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """URL of a migrated database, once for each kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'taesar.db'}"
        engine = open_engine(url)
        schema.upgrade(engine)
        engine.dispose()
        return url
    return copy_database(request.getfixturevalue("postgres_server"))


@pytest.fixture
def postgres_database(postgres_server):
    """URL of a migrated PostgreSQL database."""
    return copy_database(postgres_server)


def copy_database(server):
    """A fresh copy of the migrated database; its URL."""
    name = f"test{next(NUMBERS)}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
    return server.url(name)


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()
