"""aiaas.openai.multipart: forms are read alike however they are cut, and joined they are what came."""

from __future__ import annotations

import email.parser
import email.policy
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.errors import ClientError
from aiaas.openai.multipart import (
    FIELD_MOST,
    HEADERS_MOST,
    PARTS_MOST,
    Content,
    Field,
    File,
    FormScanner,
    Last,
    Piece,
    form_boundary,
    new_field,
    with_value,
)

BOUNDARY = b"XyZ"
CURL = (
    b'--XyZ\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b"\r\n--XyQ\r\n\x00\r\r\n\r\n--XyZ\r\n"
    b'Content-Disposition: form-data; name="model"\r\n\r\nm\r\n--XyZ--\r\n'
)


def read(data: bytes, size: int | None = None) -> list[Piece]:
    """The pieces of a whole body that comes in parts of `size` bytes."""
    scanner = FormScanner(BOUNDARY)
    step = size or len(data) or 1
    pieces = [piece for at in range(0, len(data), step) for piece in scanner.feed(data[at : at + step])]
    return [*pieces, scanner.close()]


def meaning(pieces: list[Piece]) -> list[tuple[str, str, bytes]]:
    """Fields and files, with their content in one."""
    found: list[tuple[str, str, bytes]] = []
    for piece in pieces:
        if isinstance(piece, Field):
            found.append(("field", piece.name, piece.value))
        elif isinstance(piece, File):
            found.append(("file", piece.name, b""))
        elif isinstance(piece, Content):
            found[-1] = (*found[-1][:2], found[-1][2] + piece.raw)
    return found


def part(head: bytes, value: bytes = b"v") -> bytes:
    """A form of one part with these headers."""
    return b"--XyZ\r\n" + head + b"\r\n\r\n" + value + b"\r\n--XyZ--\r\n"


def named(rest: bytes = b"", value: bytes = b"v") -> bytes:
    """A form of one part named `model`, with more in its headers."""
    return part(b'Content-Disposition: form-data; name="model"' + rest, value)


def refused(data: bytes) -> str:
    """The refusal of a form; the same in one read and byte for byte."""
    messages = []
    for size in (None, 1):
        with pytest.raises(ClientError) as raised:
            read(data, size)
        assert (raised.value.status, raised.value.code) == (400, "invalid_request")
        messages.append(raised.value.message)
    return messages[0]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_any_cut_of_a_form_gives_the_same_parts(size: int) -> None:
    """And its pieces joined are the form."""
    pieces = read(CURL, size)
    assert b"".join(piece.raw for piece in pieces) == CURL
    assert meaning(pieces) == [("file", "file", b"\r\n--XyQ\r\n\x00\r\r\n"), ("field", "model", b"m")]
    assert isinstance(pieces[-1], Last)


CONTENT = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n--Xy", b"\r\n--XyQ", b"X", b"\x00\xff", b"plain text"]),
    max_size=12,
).map(b"".join)


@given(st.lists(st.tuples(st.booleans(), CONTENT), min_size=1, max_size=5), st.integers(1, 40))
def test_parts_are_those_of_pythons_own_parser(parts: list[tuple[bool, bytes]], size: int) -> None:
    """Names and contents, of any content without the boundary."""
    body = b""
    for number, (is_file, content) in enumerate(parts):
        filename = b'; filename="f"' if is_file else b""
        body += b'--XyZ\r\nContent-Disposition: form-data; name="n%d"%b\r\n\r\n%b\r\n' % (number, filename, content)
    body += b"--XyZ--\r\n"
    pieces = read(body, size)
    assert b"".join(piece.raw for piece in pieces) == body
    expected = [("file" if f else "field", f"n{number}", content) for number, (f, content) in enumerate(parts)]
    assert meaning(pieces) == expected


def test_ordinary_form_is_read_by_pythons_mail_parser_alike() -> None:
    """A parser that nobody wrote for this project."""
    head = b"Content-Type: multipart/form-data; boundary=XyZ\r\n\r\n"
    body = named(b"", b"gpt")[:-2].replace(b"--XyZ--", b"--XyZ\r\n") + named(b'; filename="a"', b"bytes")[7:]
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    theirs = [
        (str(each.get_param("name", header="content-disposition")), each.get_payload(decode=True))
        for each in message.iter_parts()
    ]  # type: ignore[attr-defined]
    assert [(name, value) for _, name, value in meaning(read(body))] == theirs


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "ends too early"),
        (b"preamble\r\n" + CURL, "begin with its boundary"),
        (b"\r\n" + CURL, "begin with its boundary"),
        (CURL + b"epilogue", "behind its last boundary"),
        (CURL + b"\r\n", "behind its last boundary"),
        (CURL[:-4], "ends too early"),
        (CURL[:-3], "ends too early"),
        (CURL[:-1], "ends too early"),
        (CURL.replace(b"--XyZ--", b"--XyZ"), "ends too early"),
        (named().replace(b"--XyZ\r\n", b"--XyZ \r\n"), "behind a boundary"),
        (CURL.replace(b"--XyQ", b"--XyZQ"), "behind a boundary"),
        (named().replace(b"\r\n", b"\n"), "behind a boundary"),
        (named(b"\nX: y"), "header that is not valid"),
        (named(b"\rX: y"), "header that is not valid"),
        (named(b"\r\n folded"), "header that is not valid"),
        (named(b"\r\nX : y"), "header that is not valid"),
        (named(b"\r\nX: \x00"), "header that is not valid"),
        (named(b"\r\nno colon"), "header that is not valid"),
        (named(b"\r\ncontent-disposition: form-data; name=b"), "header twice"),
        (named(b"\r\nX: " + b"y" * HEADERS_MOST), "headers of more than"),
        (part(b"X: y"), "Content-Disposition"),
        (part(b""), "Content-Disposition"),
        (part(b'Content-Disposition: attachment; name="model"'), "Content-Disposition"),
        (part(b'Content-Disposition: form-data; name="a"; name="b"'), "Content-Disposition"),
        (part(b'Content-Disposition: form-data; name="a"; Name="b"'), "Content-Disposition"),
        (named(b"; filename*=utf-8''a"), "filename*"),
        (part(b"Content-Disposition: form-data; name*=utf-8''model"), "Content-Disposition"),
        (named(b"; size=3"), "Content-Disposition"),
        (named(b'; filename="a\\"; name="b"'), "Content-Disposition"),
        (part(b'Content-Disposition: form-data; name="mo\\"del"'), "Content-Disposition"),
        (part(b"Content-Disposition: form-data; name = model"), "Content-Disposition"),
        (part(b"Content-Disposition: form-data"), "valid name"),
        (part(b'Content-Disposition: form-data; name=""'), "valid name"),
        (part(b'Content-Disposition: form-data; name="m\xc3\xb6del"'), "valid name"),
        (part(b'Content-Disposition: form-data; name="mo del"'), "valid name"),
        (part(b'Content-Disposition: form-data; name="_charset_"'), "valid name"),
        (named(b"\r\nContent-Transfer-Encoding: base64"), "in an encoding"),
        (named(b"\r\nContent-Transfer-Encoding: quoted-printable"), "in an encoding"),
        (named(b"\r\nContent-Encoding: gzip"), "in an encoding"),
        (named(b"\r\nContent-Type: application/octet-stream"), "another type"),
        (named(b"\r\nContent-Type: text/plain; charset=utf-16"), "another type"),
        (named(b"\r\nContent-Length: 2"), "another length"),
        (named(b"\r\nContent-Length: -1"), "not a number"),
        (named(b'; filename="a"\r\nContent-Length: 2'), "another length"),
        (named(b"", b"v" * (FIELD_MOST + 1)), "bytes in `model`"),
        (b"--XyZ\r\nContent-Disposition: form-data; name=n\r\n\r\n\r\n" * (PARTS_MOST + 1), "parts"),
    ],
    ids=["nothing", "preamble", "empty line before", "epilogue", "second line end", "half an end", "a hyphen short",
         "half a line end", "no end", "blank behind", "longer boundary", "bare LF", "LF in a header", "CR in a header",
         "folded", "blank before the colon", "NUL", "no colon", "disposition twice", "huge headers", "no disposition",
         "no headers", "attachment", "name twice", "name twice in capitals", "filename* alone", "name*",
         "another parameter", "quote escaped at the end", "quote escaped inside", "blanks around =", "no name",
         "empty name", "name not ASCII", "name with a blank", "_charset_", "base64", "quoted-printable", "gzip",
         "field as bytes", "field in utf-16", "another length", "negative length", "file of another length",
         "huge field", "many parts"],
)  # fmt: skip
def test_form_that_others_could_read_otherwise_is_refused(data: bytes, says: str) -> None:
    """Each of them as a 400 that names the fault."""
    assert says in refused(data)


@pytest.mark.parametrize(
    "data",
    [
        named(b"\r\nContent-Type: text/plain; charset=utf-8"),
        named(b"\r\nContent-Length: 1\r\nContent-Type: text/plain; charset=UTF-8"),
        named(b"\r\nContent-Transfer-Encoding: binary\r\nContent-Type: text/plain; charset=US-ASCII"),
        named(b"; filename=a.wav; filename*=utf-8''a.wav"),
        named(b'; filename="C:\\x\\a;b=c.wav"'),
        named(b'; filename=""'),
        named(b'; filename="na\xc3\xafve.wav"\r\nX-Other: \xff'),
        part(b"content-disposition:form-data;name=model"),
        named()[:-2],
        named(b"", b"v" * FIELD_MOST),
    ],
    ids=[".NET's field", "OkHttp's", "Apache HttpClient's", ".NET's file", "path as a filename", "empty filename",
         "filename in UTF-8", "no quotes", "no line end at the end", "largest field"],
)  # fmt: skip
def test_form_as_common_clients_write_it_is_read(data: bytes) -> None:
    """Every one, also byte for byte."""
    for size in (None, 1):
        [(_, name, _)] = meaning(read(data, size if len(data) < 10_000 else None))
        assert name == "model"


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data;boundary="a:b,c?d=e"', b"a:b,c?d=e"),
        ("multipart/form-data; charset=utf-8; boundary=abc", b"abc"),
        ("multipart/form-data; boundary=abc; charset=UTF-8", b"abc"),
        ("multipart/form-data; boundary=" + "a" * 70, b"a" * 70),
        ("application/json", None),
        ("", None),
        ("multipart/form-data", "refused"),
        ("multipart/form-data; boundary=", "refused"),
        ("multipart/form-data; boundary=" + "a" * 71, "refused"),
        ("multipart/form-data; boundary=a; boundary=b", "refused"),
        ("multipart/form-data; boundary=a, multipart/form-data; boundary=b", "refused"),
        ("multipart/form-data; boundary=abc; charset=utf-16", "refused"),
        ("multipart/form-data; boundary=abc; charset=cp037", "refused"),
        ('multipart/form-data; boundary="a b"', "refused"),
        ('multipart/form-data; boundary="a\\"b"', "refused"),
        ("multipart/form-data; boundary*=utf-8''abc", "refused"),
        ("multipart/form-data; boundary=\xe9", "refused"),
    ],
)
def test_boundary_is_read_from_a_plain_media_type_only(content_type: str, boundary: bytes | str | None) -> None:
    """One boundary, of the characters of RFC 2046 without the blank, and no charset but UTF-8."""
    if boundary == "refused":
        with pytest.raises(ClientError):
            form_boundary(content_type)
    else:
        assert form_boundary(content_type) == boundary


def test_value_of_a_field_is_replaced_and_a_field_added() -> None:
    """Read again, it has the new ones, and all else as it was."""
    pieces = read(CURL)
    changed = b"".join(with_value(p, b"other") if isinstance(p, Field) else p.raw for p in pieces[:-1])
    changed += new_field(BOUNDARY, "stream_include_usage", b"true") + pieces[-1].raw
    assert meaning(read(changed)) == [
        *meaning(pieces)[:1], ("field", "model", b"other"), ("field", "stream_include_usage", b"true")
    ]  # fmt: skip


def test_file_is_not_kept() -> None:
    """Nearly all bytes of a read come out of the same call."""
    scanner = FormScanner(BOUNDARY)
    scanner.feed(named(b'; filename="a"')[: -len(b"v\r\n--XyZ--\r\n")])
    for _ in range(100):
        assert sum(len(piece.raw) for piece in scanner.feed(b"\r\n--Xy" * 1000)) >= 5990


def test_field_byte_by_byte_takes_linear_time() -> None:
    """A field of FIELD_MOST bytes in as many reads: nothing is searched twice."""
    scanner = FormScanner(BOUNDARY)
    scanner.feed(named()[: -len(b"v\r\n--XyZ--\r\n")])
    began = time.process_time()
    for _ in range(FIELD_MOST):
        scanner.feed(b"\r")
    assert time.process_time() - began < 2
