"""Foreign files are read in a process that may die: whatever a file does, it is an error of that file."""

import contextlib
import gzip
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.errors import RequestTooLargeError, SourceNotAllowedError, SourceNotFoundError
from app.jobs import reading_process
from app.jobs.formats import BadRow, SequenceRow, SourceLimits, read_rows
from app.jobs.reading_process import (
    KEPT_VARIABLES,
    SET_VARIABLES,
    ReadingUnwantedError,
    bare_environment,
    check_in_process,
    read_in_process,
)
from app.jobs.sources import SourceRoots
from models.data.reading.compression import expanded
from models.data.reading.layouts import Layout, parse_condition
from models.data.reading.places import InputFile, files_of
from models.data.reading.raw_tables import Budget
from models.data.reading.rows import FileFacts
from models.errors import InputFormatError

LIMITS = SourceLimits(max_bytes=1 << 30, max_expanded_bytes=32 << 20, max_items=5)

# One byte of the footer is wrong: Arrow's C++ throws through pyarrow, and ends the process by SIGABRT.
ABORTING = (Path(__file__).parents[2] / "layouts" / "aborting.parquet").read_bytes()


def stored(content, name="t.csv", domain=None):
    return InputFile(FileFacts(name, domain), lambda: io.BytesIO(content), len(content))


def test_a_file_that_ends_the_process_that_reads_it_is_an_error_and_this_process_goes_on():
    file = stored(ABORTING, "a.parquet")
    with pytest.raises(InputFormatError, match=r"a\.parquet: the file ended the process that read it \(SIGABRT\)"):
        check_in_process(file, Layout(), LIMITS)
    with pytest.raises(InputFormatError, match="SIGABRT"):
        list(read_in_process([file], Layout(), LIMITS))


def test_rows_that_nobody_waits_for_any_more_end_the_process_that_reads_them(monkeypatch):
    monkeypatch.setattr(reading_process, "LOOK_SECONDS", 0.05)
    file = stored(b"user,item,domain,timestamp\n" + b"u,x,d,1\n" * 1_500_000)
    looks = iter([True, True])
    with pytest.raises(ReadingUnwantedError):
        list(read_in_process([file], Layout(), LIMITS, is_wanted=lambda: next(looks, False)))

    assert next(looks, None) is None


def test_rows_are_those_that_are_read_here():
    text = "user_id,item_id,domain,timestamp\nA,x,d,2\nB,y,d,1\nA,z,d,1\nB,,d,3\n" + "".join(
        f"u{n % 400},i{n},d,{n}\n" for n in range(1500)
    )
    layout = Layout(where=(parse_condition("timestamp<1000"),))
    files = [stored(text.encode())]
    found = list(read_in_process(files, layout, LIMITS))

    assert json.dumps([_plain(row) for row in found]) == json.dumps(
        [_plain(row) for row in read_rows(files, layout, LIMITS)]
    )
    assert found[0] == BadRow(5, "missing item_id")
    assert isinstance(found[-1], SequenceRow)


def _plain(row):
    return [getattr(row, name) for name in row.__slots__]


def test_what_the_process_refuses_is_refused_here_in_the_same_words():
    with pytest.raises(InputFormatError, match=r"t\.csv: no column for the user"):
        list(read_in_process([stored(b"a,b\nx,y\n")], Layout(), LIMITS))
    bomb = gzip.compress(b"user,item,domain\n" + b"u,x,d\n" * (8 << 20))
    with pytest.raises(RequestTooLargeError, match="TAESAR_MAX_EXPANDED_BYTES"):
        list(read_in_process([stored(bomb)], Layout(), LIMITS))


def test_an_input_that_is_not_read_to_its_end_leaves_neither_process_nor_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = "user_id,item_id,domain\n" + "".join(f"u{n},x,d\n" for n in range(5000))
    with contextlib.closing(read_in_process([stored(text.encode())], Layout(), LIMITS)) as rows:
        next(rows)
        readers = _readers()
    assert len(readers) == 1
    assert _readers() == []
    assert list(tmp_path.iterdir()) == []


def _readers():
    """The processes that read, forked from the one program that this process started for it."""
    return [reader for program in _programs() for reader in _children(program)]


def _links(process):
    """What is open in a process; nothing in one that has ended."""
    return [link.readlink() for link in Path(f"/proc/{process}/fd").iterdir()]


def _programs():
    return _children(os.getpid(), b"reading_server")


def _children(parent, command=b""):
    tasks = f"/proc/{parent}/task"
    return [
        int(pid)
        for task in os.listdir(tasks)  # noqa: PTH208
        for pid in _read(f"{tasks}/{task}/children").split()
        if command in _read(f"/proc/{pid}/cmdline").encode()
    ]


def _read(path):
    with contextlib.suppress(OSError), Path(path).open() as file:
        return file.read()
    return ""


def test_a_process_that_reads_has_neither_this_ones_environment_nor_its_descriptors(tmp_path, monkeypatch):
    """And the program that they come from, once killed, is there again for the next file."""
    secrets = {"TAESAR_API_KEYS": "key-1", "TAESAR_DATABASE_URL": "postgresql://u:key-2@h/d", "AWS_SECRET_KEY": "key-3"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for program in _programs():
        os.kill(program, signal.SIGKILL)
        os.waitid(os.P_PID, program, os.WEXITED | os.WNOWAIT)
    text = "user_id,item_id,domain\n" + "".join(f"u{n},x,d\n" for n in range(5000))
    with (
        (tmp_path / "open").open("w") as ours,
        contextlib.closing(read_in_process([stored(text.encode())], Layout(), LIMITS)) as rows,
    ):
        os.set_inheritable(ours.fileno(), True)
        next(rows)
        found = [(_read(f"/proc/{process}/environ"), _links(process)) for process in (*_programs(), *_readers())]

    assert len(found) == 2
    for environment, links in found:
        names = {variable.partition("=")[0] for variable in environment.split("\0") if variable}
        assert names == {*SET_VARIABLES, "PYTHONPATH"} | (KEPT_VARIABLES & os.environ.keys())
        assert not any(value in environment for value in secrets.values())
        assert Path(ours.name) not in links


# Sees whatever has happened within 0.3 s at once, the ends of processes first.
LATE = """
import selectors, time
from app.jobs import reading_server

class Late(selectors.DefaultSelector):
    def select(self, timeout=None):
        super().select(timeout)
        time.sleep(0.3)
        return sorted(super().select(0), key=lambda event: event[0].data is not None)

selectors.DefaultSelector = Late
reading_server.main()
"""


def test_a_process_that_ends_while_nobody_waits_for_it_any_more_does_not_end_the_program():
    """It did on a busy machine, and with it every other reading."""
    requests, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-c", LATE, str(theirs.fileno())]
        program = subprocess.Popen(command, pass_fds=(theirs.fileno(),), env=bare_environment(os.environ))
    codes = []
    with program, requests:
        for _ in range(2):
            (channel, their_channel), (report, their_report) = socket.socketpair(), socket.socketpair()
            with their_channel, their_report:
                socket.send_fds(requests, [b"\n"], [their_channel.fileno(), their_report.fileno()])
            channel.close()  # so it has no task, and ends
            with report:
                report.shutdown(socket.SHUT_WR)
                report.settimeout(60)
                codes.append(report.recv(100))

    assert codes == [b"0", b"0"]
    assert program.returncode == 0


PROBE = """
import json, os, signal, socket, sys, tempfile
from pathlib import Path
from app.jobs.confinement import confine
from app.jobs.reading_task import program_folders

scratch, foreign, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
acts = {
    "read a file": lambda: open(foreign).read(),
    "read the secrets of another process": lambda: open(f"/proc/{os.getppid()}/environ").read(),
    "list a folder": lambda: os.listdir("/"),
    "write a file": lambda: open(foreign, "a"),
    "connect": lambda: socket.create_connection(("127.0.0.1", port)).close(),
    "signal": lambda: os.kill(os.getppid(), 0),
    "start a program": lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "exit"], {}),
    "use the scratch folder": lambda: tempfile.TemporaryFile(dir=scratch).write(b"x"),
    "import": lambda: __import__("wave"),
}
found = {"confined": confine(readable=program_folders(), writable=[scratch])}
for name, act in acts.items():
    try:
        act()
        found[name] = True
    except OSError:
        found[name] = False
print(json.dumps(found))
"""


def test_a_process_that_reads_reaches_nothing_but_its_scratch_folder(tmp_path):
    """Should a file ever make it do what it likes: what that can be."""
    (tmp_path / "foreign").write_text("secret")
    (tmp_path / "scratch").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = [tmp_path / "scratch", tmp_path / "foreign", str(listener.getsockname()[1])]
        command = [sys.executable, "-P", "-c", PROBE, *arguments]
        environment = bare_environment(os.environ)
        found = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    if not found.pop("confined"):
        pytest.skip("no Landlock: this kernel cannot confine a process")

    assert {name for name, was_done in found.items() if was_done} <= {"use the scratch folder", "import", "signal"}
    assert found["use the scratch folder"]
    assert found["import"]


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({b"ARROW:schema": b"not a schema"}, id="an Arrow schema that is none"),
        pytest.param({b"pandas": b'{"index_columns": [{"kind": "x"}], "columns": 7}'}, id="pandas' metadata"),
    ],
)
def test_what_parquet_says_of_itself_is_not_believed(metadata):
    sink = io.BytesIO()
    table = pa.table({"user_id": ["u"], "item_id": ["x"], "domain": ["d"]})
    pq.write_table(table.replace_schema_metadata(metadata), sink, store_schema=False)

    assert check_in_process(stored(sink.getvalue(), "a.parquet"), Layout(), LIMITS) == "parquet"


def test_a_parquet_file_that_points_to_another_file_reads_nothing_of_it(tmp_path):
    """A column's place may name another file: nothing but what was opened is read."""
    sink = io.BytesIO()
    metadata: list[pq.FileMetaData] = []
    table = pa.table({"user_id": ["u"], "item_id": ["secret"], "domain": ["d"]})
    pq.write_table(table, tmp_path / "foreign.parquet", metadata_collector=metadata)
    metadata[0].set_file_path(str(tmp_path / "foreign.parquet"))
    metadata[0].write_metadata_file(sink)
    found: list[object] = []
    with contextlib.suppress(InputFormatError):
        found = list(read_in_process([stored(sink.getvalue(), "a.parquet")], Layout(), LIMITS))

    assert "secret" not in repr(found)


def test_a_check_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(reading_process, "CHECK_SECONDS", 0.0001)
    with pytest.raises(InputFormatError, match="its beginning takes longer than"):
        check_in_process(stored(b"user,item,domain\n"), Layout(), LIMITS)


def test_interactions_that_do_not_fit_are_sorted_by_files(tmp_path, monkeypatch):
    rows = [f"u{n % 37},i{n},d,{(n * 7919) % 1000}\n" for n in range(1000)]
    files = [stored(("user_id,item_id,domain,timestamp\n" + "".join(rows)).encode())]
    limits = SourceLimits(1 << 30, 1 << 30, 1000)
    at_once = list(read_rows(files, Layout(), limits))
    monkeypatch.setattr("app.jobs.user_sort.ROWS_IN_MEMORY", 100)
    monkeypatch.setattr("app.jobs.user_sort.MERGED_ROWS", 7)
    monkeypatch.setattr("models.data.reading.text_blocks.BLOCK_BYTES", 1000)

    assert list(read_rows(files, Layout(), limits, scratch=tmp_path)) == at_once
    assert len(list(tmp_path.iterdir())) > 5
    assert [row.user_id for row in at_once] == [f"u{n}" for n in range(37)]
    assert all(row.times == sorted(row.times) for row in at_once)


# -- Compression


def members(count):
    return gzip.compress(b"") * count


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(members(200_000), "members hold 0 bytes only", id="empty members"),
        pytest.param(b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * (8 << 20), "a header without end", id="endless name"),
        pytest.param(gzip.compress(b"text" * 9999)[:-9], "the file ends in the middle", id="torn"),
        pytest.param(gzip.compress(b"text" * 9999)[:-8] + bytes(8), "damaged gzip data", id="wrong sum"),
    ],
)
def test_gzip_that_no_program_writes_is_refused_before_it_costs_much(content, reason):
    started = time.process_time()
    with pytest.raises(InputFormatError, match=reason):
        expanded(io.BytesIO(content), Budget(1 << 40)).read()

    assert time.process_time() - started < 5


def test_gzip_of_many_members_padded_or_not_is_read_whole():
    parts = [f"{n}\n".encode() * 500 for n in range(3000)]
    content = b"".join(gzip.compress(part, 1) + b"\0" * (n % 3) for n, part in enumerate(parts))

    assert expanded(io.BytesIO(content), Budget()).read() == b"".join(parts)


def test_gzip_of_nothing_but_newlines_is_passed_over_at_the_speed_of_memory():
    """64 MiB of empty lines in 64 kB cost a request next to nothing."""
    packer = zlib.compressobj(wbits=31)
    content = b"".join(packer.compress(b"\n" * (1 << 20)) for _ in range(64)) + packer.flush()
    limits = SourceLimits(1 << 30, 1 << 30, 5)
    started = time.process_time()
    rows = list(read_rows([stored(gzip.compress(b"user,item,domain\n") + content)], Layout(), limits))

    assert rows == []
    assert time.process_time() - started < 10


# -- Places


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret.csv").write_text("TOP SECRET,of another folder\nx,y\n")
    return inside


def test_a_link_that_is_swapped_between_check_and_open_leads_nowhere(folder):
    """Whatever moment the attacker finds: what was opened is checked, not what the name said before."""
    (folder / "good.csv").write_text("user_id,item_id,domain\nu,x,d\n")
    roots = SourceRoots((f"file://{folder}",))
    stop = threading.Event()

    def swap():
        for turn in itertools.count():
            if stop.is_set():
                return
            (folder / "t").symlink_to(folder / "good.csv" if turn % 2 else folder.parent / "secret.csv")
            (folder / "t").rename(folder / "x.csv")

    swapping = threading.Thread(target=swap)
    swapping.start()
    outcomes = set()
    try:
        for _ in range(2000):
            with (
                contextlib.suppress(SourceNotFoundError, SourceNotAllowedError),
                roots.open(f"file://{folder}/x.csv", LIMITS) as file,
            ):
                outcomes.add(file.read(10))
    finally:
        stop.set()
        swapping.join()

    assert outcomes == {b"user_id,it"}


def test_a_pipe_is_no_file_and_nobody_waits_for_it(folder):
    os.mkfifo(folder / "pipe.csv")
    with pytest.raises(SourceNotFoundError, match="no such file"):
        SourceRoots((f"file://{folder}",)).open(f"file://{folder}/pipe.csv", LIMITS)


def test_folders_and_globs_stand_for_their_files_each_with_its_domain(folder):
    for domain in ("a", "b"):
        part = folder / "log.parquet" / f"domain={domain}"
        part.mkdir(parents=True)
        table = pa.table({"user": ["u", "v"], "item": [f"{domain}1", f"{domain}2"], "timestamp": [2, 1]})
        pq.write_table(table, part / "part-0.parquet")
    (folder / "log.parquet" / "_SUCCESS").touch()
    roots = SourceRoots((f"file://{folder}",))
    expected = [
        SequenceRow(1, "u", ["a1", "b1"], ["a", "b"], 2, [2.0, 2.0]),
        SequenceRow(2, "v", ["a2", "b2"], ["a", "b"], 2, [1.0, 1.0]),
    ]

    for place in ("log.parquet", "log.parquet/domain=*/*.parquet", "log.parquet/*"):
        files = roots.files([f"file://{folder}/{place}"], LIMITS)
        assert list(read_in_process(files, Layout(), LIMITS)) == expected, place


def test_a_domain_stands_before_a_place_and_bad_rows_name_their_file(folder):
    (folder / "one.csv").write_text("user,item\nu,x\n,y\n")
    (folder / "two.csv").write_text("user,item\nu,z\n,w\n")
    roots = SourceRoots((f"file://{folder}",))
    files = roots.files([f"a=file://{folder}/one.csv", f"b=file://{folder}/two.csv"], LIMITS)

    assert list(read_rows(files, Layout(), LIMITS)) == [
        BadRow(3, "one.csv line 3: missing user"),
        BadRow(6, "two.csv line 3: missing user"),
        SequenceRow(2, "u", ["x", "z"], ["a", "b"], 2),
    ]


def test_files_are_limited_together(folder):
    for name in "ab":
        (folder / f"{name}.csv").write_bytes(b"x" * 60)
    with pytest.raises(RequestTooLargeError, match="TAESAR_MAX_INPUT_BYTES"):
        SourceRoots((f"file://{folder}",)).files([f"file://{folder}/*.csv"], SourceLimits(100, 1000, 5))


def test_a_folder_with_a_link_to_outside_reads_nothing_of_it(folder):
    (folder / "log").mkdir()
    (folder / "log" / "x.csv").symlink_to(folder.parent / "secret.csv")
    files = SourceRoots((f"file://{folder}",)).files([f"file://{folder}/log"], LIMITS)
    with pytest.raises(SourceNotAllowedError):
        list(read_in_process(files, Layout(), LIMITS))


def test_columns_are_carried_along_as_texts(tmp_path):
    (tmp_path / "t.csv").write_text("user,item,domain,timestamp,price,page\nu,x,d,2,1.50,\nu,y,d,1,2,home\n")
    layout = Layout(carried=("price", "page"))
    [row] = read_in_process(files_of([tmp_path / "t.csv"]), layout, LIMITS)

    assert (row.item_ids, row.carried) == (["y", "x"], [["2", "home"], ["1.50", None]])
