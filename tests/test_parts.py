"""Images, audio and files in messages: what they may be, how they travel, and how each provider is sent them."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

import helix
from helix import Agent, Audio, Executor, File, Image, ToolContext, UserMessage, tool
from helix.chunks import MessageChunk, RunStart, ToolEnd, chunk_to_json, parse_chunk, to_json_value
from helix.commands import Send, command_to_json, parse_command
from helix.errors import ModelError
from helix.messages import Message, ToolMessage
from helix.model import History
from helix.models._anthropic_messages import encode_message as anthropic
from helix.models._chat import encode_message as chat
from helix.models._google import encode_message as google
from helix.models._google import join_contents
from helix.models._responses import encode_message as responses
from helix.parts import attach
from helix.testing import Call, ScriptedModel, Turn, check_stream

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n not really \xff\xfe\x00"
BASE64 = b64encode(PNG).decode()
CAT = Image(data=PNG, media_type="image/png", name="cat.png")
PAGE = Image(url="https://example.com/a/page.jpg?signature=secret")
CALL = Audio(data=b"RIFF", media_type="audio/wav")
REPORT = File(data=b"%PDF-1.7", media_type="application/pdf", name="report.pdf")
NOTES = File(data="néé".encode(), media_type="text/markdown", name="notes.md")
UPLOADED = File(file_ids={"openai": "file-1", "anthropic": "file_2", "google": "https://host/v1beta/files/3"})


def looker(model: ScriptedModel | None = None, **options: Any) -> Agent:
    return Agent("looker", model=model or ScriptedModel({"looker": ["A cat."] * 3}), **options)


# --- what they may be


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    for name, kind, media_type in [
        ("cat.PNG", Image, "image/png"),
        ("cat.webp", Image, "image/webp"),
        ("call.mp3", Audio, "audio/mpeg"),
        ("call.wav", Audio, "audio/wav"),
        ("report.pdf", File, "application/pdf"),
        ("notes.md", File, "text/markdown"),
    ]:
        (tmp_path / name).write_bytes(PNG)
        expected = kind(data=PNG, media_type=media_type, name=name)
        assert kind.from_path(tmp_path / name) == expected == attach(str(tmp_path / name))


def test_a_url_says_what_it_is_if_its_ending_does() -> None:
    assert PAGE.media_type == "image/jpeg"
    assert Image(url="https://example.com/show?id=1").media_type is None
    assert Image(url="https://example.com/page.html").media_type is None  # no image's ending
    assert File(url="gs://bucket/report.pdf").media_type == "application/pdf"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Image(), "Image is empty: give data= and media_type=, url=, or use Image.from_path(…)"),
        (lambda: File(file_ids={}), "File is empty"),
        (lambda: Audio(data=b"", media_type="audio/wav"), "Audio: data= is empty"),
        (lambda: Image(data=PNG), "Image: data= needs media_type=, such as 'image/png'"),
        (lambda: Image(data=BASE64, media_type="image/png"), "Image: data= takes bytes, not str"),  # type: ignore[arg-type]
        (lambda: Image(data=PNG, url="https://x/y.png", media_type="image/png"), "Image: give data= or url=, not both"),
        (lambda: Image(url="cat.png"), "for a file use Image.from_path(…)"),
        (lambda: Image(url=f"data:image/png;base64,{BASE64}"), "url= must begin with https:// or the like"),
        (
            lambda: Image(data=PNG, media_type="audio/wav"),
            "media_type= must be one such as 'image/png', not 'audio/wav'",
        ),
        (lambda: File(data=PNG, media_type="pdf"), "media_type= must be one such as 'application/pdf', not 'pdf'"),
    ],
)
def test_what_cannot_be_is_said(make: Any, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert problem in str(caught.value)
    assert BASE64 not in str(caught.value)


def test_a_file_that_is_not_there_or_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        Image.from_path(tmp_path / "nowhere.png")
    (tmp_path / "thing").write_bytes(PNG)
    with pytest.raises(ValueError, match="does not say what it is; give media_type="):
        File.from_path(tmp_path / "thing")
    (tmp_path / "report.pdf").write_bytes(PNG)
    with pytest.raises(ValueError, match="not 'application/pdf'"):
        Image.from_path(tmp_path / "report.pdf")
    assert File.from_path(tmp_path / "thing", media_type="application/x-thing").data == PNG


def test_nobody_is_shown_the_data_or_a_urls_query() -> None:
    assert [repr(part) for part in (CAT, PAGE, CALL, UPLOADED)] == [
        "Image(cat.png)",
        "Image(https://example.com/a/page.jpg)",
        "Audio(audio/wav, 4 bytes)",
        "File(openai file-1, anthropic file_2, google https://host/v1beta/files/3)",
    ]
    message = UserMessage(["Look:", CAT, PAGE])
    assert message.text == "Look:\n[image: cat.png]\n[image: https://example.com/a/page.jpg]"
    assert "secret" not in repr(message)
    assert "PNG" not in repr(message)


# --- how they travel


def test_a_message_with_parts_is_json_and_back() -> None:
    start = RunStart("r", "looker", [UserMessage(["Look:", CAT, PAGE, UPLOADED])], "m", None)
    data = chunk_to_json(start)
    assert json.loads(data)["input"] == [
        {
            "content": [
                "Look:",
                {"data": BASE64, "mediaType": "image/png", "name": "cat.png", "type": "image"},
                {"url": PAGE.url, "mediaType": "image/jpeg", "type": "image"},
                {"fileIds": UPLOADED.file_ids, "type": "file"},
            ],
            "role": "user",
        }
    ]
    assert parse_chunk(data) == start
    told = Send("c", ["Look:", CAT])
    assert parse_command(command_to_json(told)) == told


def test_a_malformed_part_is_a_malformed_chunk_without_its_data() -> None:
    data = chunk_to_json(RunStart("r", "looker", [UserMessage([CAT])], "m", None))
    for good, bad in [
        (BASE64.encode(), b"?" * 64),
        (b'"image/png"', b'"picture"'),
        (b'"type":"image"', b'"type":"film"'),
    ]:
        with pytest.raises(helix.InvalidChunk, match="malformed run_start chunk: input") as caught:
            parse_chunk(data.replace(good, bad))
        assert BASE64 not in str(caught.value)
        assert "????" not in str(caught.value)


async def test_a_run_is_given_texts_and_images() -> None:
    for given, content in [
        (["What is this?", CAT], ["What is this?", CAT]),
        (("half \ud83c", CAT), ["half \N{REPLACEMENT CHARACTER}", CAT]),
        (CAT, [CAT]),
        (UserMessage([CAT, "?"]), [CAT, "?"]),
        (["no", "image"], '["no","image"]'),
    ]:
        model = ScriptedModel({"looker": ["A cat."]})
        result = await helix.run(looker(model), given)
        assert list(model.requests[0].messages) == [UserMessage(content)] == result.messages[:1]
        assert BASE64 not in repr(result)
        assert BASE64 not in str(result)


async def test_something_else_beside_an_image_is_said() -> None:
    with pytest.raises(ValueError, match=r"input\[1\]: beside images, audio and files stand texts, not dict"):
        await helix.run(looker(), [CAT, {"a": 1}])
    with pytest.raises(ValueError, match=r"input.a: Image\(cat.png\) has no JSON form"):
        to_json_value({"a": CAT}, where="input")


async def test_parts_stay_through_sessions_steering_forks_and_stores(tmp_path: Path) -> None:
    store, model = f"sqlite:///{tmp_path}/runs.db", ScriptedModel({"looker": ["1", "2", "3", "4"]})
    agent = looker(model)
    async with Executor(store=store, agents=[agent]) as executor:
        session = helix.Session(agent, executor, "s")
        first = await session.send(["Look:", CAT])
        await session.send("And?")
    async with Executor(store=store, agents=[agent]) as executor:  # as another process would
        session = helix.Session(agent, executor, "s")
        handle = await executor.fork(first.run_id, step=2, input=[PAGE, "Now this."])
        assert (await handle.result()).status == "completed"
        await session.send([REPORT])
        assert [message.content for message in await executor.history("s") if isinstance(message, UserMessage)] == [
            ["Look:", CAT],
            "And?",
            [REPORT],
        ]
        chunks = [chunk async for chunk in handle.stream()]
    check_stream(chunks)
    forked = [message.content for message in model.requests[2].messages if isinstance(message, UserMessage)]
    assert forked == [["Look:", CAT], [PAGE, "Now this."]]


async def test_an_agent_at_work_is_sent_an_image_and_a_child_is_given_one() -> None:
    child = Agent("child", model=ScriptedModel({"child": ["seen", "not asked again"]}))

    @tool
    async def show(ctx: ToolContext) -> str:
        await handle.send(["Also:", PAGE])
        once = await ctx.run_agent(child, ["Look:", CAT])
        return once.output

    model = ScriptedModel({"looker": [Turn(calls=[Call("show")]), "done"]})
    async with Executor() as executor:
        handle = await executor.execute(looker(model, tools=[show]), "go")
        result = await handle.result()
        chunks = [chunk async for chunk in handle.stream()]
    assert result.status == "completed"
    check_stream(chunks)
    assert model.requests[1].messages[-1] == UserMessage(["Also:", PAGE])
    (started,) = [chunk for chunk in chunks if isinstance(chunk, RunStart) and chunk.parent_id]
    assert started.input == [UserMessage(["Look:", CAT])]
    assert [chunk.message for chunk in chunks if isinstance(chunk, MessageChunk)] == [UserMessage(["Also:", PAGE])]


async def test_a_tool_gives_an_image() -> None:
    @tool(max_result_bytes=8)
    def shot(alone: bool) -> Image | list[str | Image]:
        return CAT if alone else ["0123456789", CAT]

    @tool
    def lost() -> dict[str, Image]:
        return {"shot": CAT}

    calls = [Call("shot", alone=True), Call("shot", alone=False), Call("lost")]
    model = ScriptedModel({"looker": [Turn(calls=calls), "done"]})
    async with helix.stream(looker(model, tools=[shot, lost]), "go") as run:
        chunks = [chunk async for chunk in run]
    check_stream(chunks)
    answers = [message for message in model.requests[1].messages if isinstance(message, ToolMessage)]
    cut = "01234567\n[cut: 10 bytes, 8 kept]"
    assert [answer.content for answer in answers[:2]] == [[CAT], [cut, CAT]]
    assert answers[2].is_error
    assert "result.shot: Image(cat.png) has no JSON form" in answers[2].text
    ends = sorted((chunk for chunk in chunks if isinstance(chunk, ToolEnd)), key=lambda end: end.tool_call_id)
    assert [(end.result, end.truncated) for end in ends[:2]] == [
        ("[image: cat.png]", None),
        (f"{cut}\n[image: cat.png]", True),
    ]
    assert [parse_chunk(chunk_to_json(end)) for end in ends] == ends


def test_user_messages_in_a_row_become_one() -> None:
    seen: list[Message] = []

    def encode(message: Message) -> bytes:
        seen.append(message)
        return b"x"

    History([UserMessage("a"), UserMessage([CAT]), UserMessage("b")]).encoded("d", encode)
    assert seen == [UserMessage(["a", CAT, "b"])]


# --- how each provider is sent them


def user(encode: Any, *content: Any) -> Any:
    return json.loads(b"[%b]" % encode(UserMessage(list(content))).lstrip(b"\0u"))


def test_chat_completions_take_images_sounds_and_pdfs() -> None:
    sent = user(chat, "?", CAT, PAGE, CALL, Audio(data=b"x", media_type="audio/mpeg"), REPORT, UPLOADED)
    assert sent[0]["content"] == [
        {"type": "text", "text": "?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}},
        {"type": "image_url", "image_url": {"url": PAGE.url}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "eA==", "format": "mp3"}},
        {
            "type": "file",
            "file": {"filename": "report.pdf", "file_data": "data:application/pdf;base64,JVBERi0xLjc="},
        },
        {"type": "file", "file": {"file_id": "file-1"}},
    ]


def test_responses_take_images_and_files() -> None:
    url = "https://example.com/report.pdf"
    sent = user(responses, "?", CAT, PAGE, NOTES, File(url=url), UPLOADED)
    expected = [
        {"type": "input_text", "text": "?"},
        {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{BASE64}"},
        {"type": "input_image", "detail": "auto", "image_url": PAGE.url},
        {"type": "input_file", "filename": "notes.md", "file_data": "data:text/markdown;base64,bsOpw6k="},
        {"type": "input_file", "file_url": url},
        {"type": "input_file", "file_id": "file-1"},
    ]
    assert sent == [{"role": "user", "content": expected}]
    answer = ToolMessage("t", "shot", ["?", CAT])
    assert json.loads(responses(answer))["output"] == expected[:2]
    picture = Image(file_ids={"openai": "file-7"})
    (sent,) = user(responses, picture)
    assert sent["content"] == [{"type": "input_image", "detail": "auto", "file_id": "file-7"}]


def test_anthropic_takes_images_and_documents() -> None:
    url = "https://example.com/show?id=1"
    sent = user(anthropic, "?", CAT, PAGE, REPORT, File(url=url), NOTES, UPLOADED)
    expected = [
        {"type": "text", "text": "?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        {"type": "image", "source": {"type": "url", "url": PAGE.url}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjc="},
            "title": "report.pdf",
        },
        {"type": "document", "source": {"type": "url", "url": url}},
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "néé"},
            "title": "notes.md",
        },
        {"type": "document", "source": {"type": "file", "file_id": "file_2"}},
    ]
    assert sent == expected
    (answer,) = json.loads(b"[%b]" % anthropic(ToolMessage("t", "s", ["?", CAT]))[2:])
    assert answer == {"type": "tool_result", "tool_use_id": "t", "content": expected[:2]}


def test_gemini_takes_all() -> None:
    (sent,) = user(google, "?", CAT, PAGE, CALL, REPORT, UPLOADED, Image(url="https://a/b"))
    expected = [
        {"text": "?"},
        {"inlineData": {"mimeType": "image/png", "data": BASE64}},
        {"fileData": {"mimeType": "image/jpeg", "fileUri": PAGE.url}},
        {"inlineData": {"mimeType": "audio/wav", "data": "UklGRg=="}},
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBERi0xLjc="}},
        {"fileData": {"fileUri": "https://host/v1beta/files/3"}},
        {"fileData": {"fileUri": "https://a/b"}},
    ]
    assert sent == {"role": "user", "parts": expected}
    answered = google(ToolMessage("t", "shot", ["?", CAT]), vouch=True)
    (answer,) = json.loads(b"[%b]" % join_contents(answered))[0]["parts"]
    response = {"result": "?\n[image: cat.png]"}
    assert answer == {
        "functionResponse": {"id": "t", "name": "shot", "response": response, "parts": [expected[1]]},
    }


ELSEWHERE = File(file_ids={"elsewhere": "1"})
LATIN = File(data=b"n\xe9", media_type="text/plain")


@pytest.mark.parametrize(
    ("encode", "message", "problem"),
    [
        (chat, UserMessage([File(url="https://a/b.pdf")]), "of type application/pdf, given as a URL"),
        (chat, UserMessage([NOTES]), "File(notes.md) of type text/markdown, given as data. It takes images"),
        (chat, UserMessage([Audio(url="https://a/b.wav")]), "audio as WAV or MP3 data"),
        (chat, UserMessage([Audio(data=b"x", media_type="audio/flac")]), "of type audio/flac"),
        (chat, UserMessage([Image(file_ids={"openai": "file-1"})]), "Image(openai file-1)"),
        (chat, ToolMessage("t", "f", [CAT]), "in a tool's result, does not take Image(cat.png)"),
        (responses, UserMessage([CALL]), "The Responses API does not take Audio(audio/wav, 4 bytes)"),
        (responses, UserMessage([ELSEWHERE]), "given as another provider's file id"),
        (anthropic, UserMessage([CALL]), "Anthropic's Messages API does not take Audio"),
        (anthropic, UserMessage([Image(data=PNG, media_type="image/tiff")]), "of type image/tiff"),
        (anthropic, UserMessage([File(url="https://a/b.txt")]), "text files not by URL"),
        (anthropic, UserMessage([LATIN]), "UTF-8 text files"),
        (anthropic, ToolMessage("t", "f", [CALL]), "does not take Audio"),
        (google, UserMessage([ELSEWHERE]), "by the URI of an uploaded file"),
        (google, ToolMessage("t", "f", [CAT]), "in a tool's result, does not take Image(cat.png)"),
    ],
)
def test_what_a_provider_does_not_take_is_said(encode: Any, message: Message, problem: str) -> None:
    with pytest.raises(ModelError) as caught:
        encode(message)
    assert problem in str(caught.value)
    assert (caught.value.code, caught.value.retryable) == ("model_rejected", False)
