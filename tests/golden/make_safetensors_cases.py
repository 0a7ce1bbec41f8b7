#!/usr/bin/env python3
"""Makes safetensors_cases.json: small files, good and bad, and what the reference says of each.

    pip install safetensors==0.8.0
    tests/golden/make_safetensors_cases.py

The reference is the Rust parser behind `safetensors.deserialize`. A case holds the file's first
bytes (length and header, in hex), how many zero bytes of data follow, and whether to accept it.
Where we are stricter than the reference the case says why.
"""

import json
import pathlib
import struct

import safetensors

CASES = []


def case(name, header, data_bytes=0, length=None, stricter=None):
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    head = struct.pack("<Q", len(header) if length is None else length) + header
    CASES.append(dict(name=name, head=head, data_bytes=data_bytes, stricter=stricter))


def tensor(dtype="F32", shape=(2, 2), offsets=(0, 16), **more):
    return dict(dtype=dtype, shape=list(shape), data_offsets=list(offsets), **more)


def good():
    case("OneTensor", {"a": tensor()}, 16)
    case("TwoTensorsOutOfOrder", {"b": tensor(offsets=(16, 32)), "a": tensor()}, 32)
    case("NoTensors", "{}")
    case("Metadata", {"__metadata__": {"format": "pt"}, "a": tensor()}, 16)
    case("PaddedWithSpaces", json.dumps({"a": tensor()}) + "      ", 16)
    case("RankZero", {"a": tensor(shape=(), offsets=(0, 4))}, 4)
    case("EmptyTensor", {"a": tensor(shape=(0, 5), offsets=(0, 0)), "b": tensor()}, 16)
    case("EmptyTensorInTheMiddle",
         {"a": tensor(), "b": tensor(shape=(0,), offsets=(16, 16)), "c": tensor(offsets=(16, 32))},
         32)
    case("HalfPrecision", {"a": tensor("BF16", offsets=(0, 8)), "b": tensor("F16", offsets=(8, 16))},
         16)
    case("UnalignedTensor", {"a": tensor("U8", (1,), (0, 1)), "b": tensor(offsets=(1, 17))}, 17)
    case("EightBitFloats", {"a": tensor("F8_E4M3", (4,), (0, 4)), "b": tensor("F8_E5M2", (4,), (4, 8)),
                            "c": tensor("F8_E8M0", (4,), (8, 12))}, 12)
    case("FourBitFloats", {"a": tensor("F4", (4,), (0, 2))}, 2)
    case("UnknownExtraField", {"a": tensor(comment="x")}, 16)
    case("NameWithEscapes", {"a\n\"\u00e9": tensor()}, 16)


def bad_sizes():
    case("DataShort", {"a": tensor()}, 15)
    case("DataMissing", {"a": tensor()}, 0)
    case("TrailingByte", {"a": tensor()}, 17)
    case("TrailingBytesWithoutTensors", "{}", 8)
    case("HoleAtTheStart", {"a": tensor(offsets=(4, 20))}, 20)
    case("HoleBetween", {"a": tensor(), "b": tensor(offsets=(20, 36))}, 36)
    case("Overlap", {"a": tensor(), "b": tensor(offsets=(12, 28))}, 28)
    case("SamePlaceTwice", {"a": tensor(), "b": tensor()}, 16)
    case("OneWithinAnother", {"a": tensor(shape=(4, 2), offsets=(0, 32)),
                              "b": tensor(offsets=(8, 24))}, 32)
    case("OffsetsReversed", {"a": tensor(offsets=(16, 0))}, 16)
    case("OffsetsBeyondTheFile", {"a": tensor(offsets=(0, 1 << 40), shape=(1 << 38,))}, 16)
    case("OffsetsNegative", {"a": tensor(offsets=(-16, 0))}, 16)
    case("OffsetsFractional", '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16.0]}}', 16)
    case("OffsetsOne", {"a": tensor(offsets=(0,))}, 16)
    case("OffsetsThree", {"a": tensor(offsets=(0, 16, 16))}, 16)
    case("OffsetsHuge", {"a": tensor(offsets=(0, 1 << 64))}, 16)
    case("OffsetEndWrapsWithHeader", {"a": tensor(offsets=((1 << 64) - 16, (1 << 64) - 1))}, 16)
    case("ShapeTooLarge", {"a": tensor(shape=(2, 3))}, 16)
    case("ShapeTooSmall", {"a": tensor(shape=(2, 1))}, 16)
    case("ShapeWrapsToZero", {"a": tensor(shape=(1 << 32, 1 << 32), offsets=(0, 0))})
    case("ShapeWrapsToTheRightSize", {"a": tensor(shape=((1 << 62) + 4,))}, 16)
    case("ShapeWrapsWithZero", {"a": tensor(shape=(1 << 63, 4, 0), offsets=(0, 0))})
    case("ShapeNegative", {"a": tensor(shape=(-2, -2))}, 16)
    case("ShapeFractional", '{"a":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}}', 16)
    case("ShapeIsAString", {"a": dict(dtype="F32", shape="4", data_offsets=[0, 16])}, 16)
    case("ShapeHuge", {"a": tensor(shape=(1 << 64,))}, 16)
    case("HalfAByte", {"a": tensor("F4", (3,), (0, 2))}, 2)


def bad_headers():
    case("LengthZero", "")
    case("LengthBeyondTheFile", "{}", length=100)
    case("LengthAboveTheLimit", "{}", length=100_000_001)
    case("LengthWrapsWithPrefix", "{}", length=(1 << 64) - 8)
    case("LengthAllOnes", "{}", length=(1 << 64) - 1)
    case("LengthCutsTheJson", {"a": tensor()}, 16, length=10)
    case("NotJson", "{abc}", 0)
    case("ArrayInsteadOfObject", "[]", 0)
    case("StartsWithASpace", " {}", 0, stricter="the format says that a header begins with {")
    case("TextAfterTheObject", "{} x", 0)
    case("PaddedWithZeros", "{}\0\0\0", 0)
    case("NotUtf8", b'{"a\xff":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', 16)
    case("LoneSurrogate", b'{"a\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', 16)
    case("DuplicateTensor", '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
         '"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', 16,
         stricter="two tensors of one name: readers would disagree which one counts")
    case("DuplicateField", '{"a":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
         16)
    case("DuplicateMetadata", '{"__metadata__":{"a":"1"},"__metadata__":{"b":"2"}}', 0)
    case("DuplicateMetadataKey", '{"__metadata__":{"a":"1","a":"2"}}', 0,
         stricter="a key twice in one object")
    case("MetadataOfNumbers", {"__metadata__": {"a": 1}, "b": tensor()}, 16)
    case("MetadataIsAString", {"__metadata__": "a", "b": tensor()}, 16)
    case("DTypeUnknown", {"a": tensor("F128")}, 16)
    case("DTypeLowerCase", {"a": tensor("f32")}, 16)
    case("DTypeMissing", {"a": dict(shape=[4], data_offsets=[0, 16])}, 16)
    case("DTypeNumber", {"a": tensor(4)}, 16)
    case("ShapeMissing", {"a": dict(dtype="F32", data_offsets=[0, 16])}, 16)
    case("OffsetsMissing", {"a": dict(dtype="F32", shape=[4])}, 16)
    case("EntryIsANumber", {"a": 1})
    case("EntryIsNull", {"a": None})
    case("DeepNestingOfArrays", '{"a":' + "[" * 300 + "]" * 300 + "}")
    case("DeepNestingOfObjects", '{"a":' * 300 + "1" + "}" * 300)
    case("DeepNestingInAnExtraField", '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":'
         + "[" * 100 + "]" * 100 + "}}", 16, stricter="nested deeper than any honest header")


def reference_accepts(head, data_bytes):
    try:
        safetensors.deserialize(head + bytes(data_bytes))
        return True
    except safetensors.SafetensorError:
        return False


def main():
    good()
    bad_sizes()
    bad_headers()
    lines = []
    for entry in CASES:
        reference = reference_accepts(entry["head"], entry["data_bytes"])
        accept = reference and entry["stricter"] is None
        if entry["stricter"] is not None:
            print(f"{entry['name']}: reference {'accepts' if reference else 'rejects'}")
        lines.append(json.dumps(dict(name=entry["name"], head_hex=entry["head"].hex(),
                                     data_bytes=entry["data_bytes"], accept=accept)))
        print(f"{entry['name']:32} {'accept' if accept else 'reject'}")
    file = pathlib.Path(__file__).parent / "safetensors_cases.json"
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
