"""The messages of `envoy.service.ext_proc.v3` that the endpoint picker reads and writes, and the service's name.

Rules: numbers and types of fields are Envoy's (api/envoy/service/ext_proc/v3/external_processor.proto and its imports);
what is not used here is left out, and Protocol Buffers skip what they do not know. Enumerations are their numbers, a
map is the repeated entries that it is on the wire, and of a `oneof` one field is set. docs/adr/0012 says why the
classes are made here.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.struct_pb2 import Struct

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
METHOD = "Process"
BUFFERED, FULL_DUPLEX_STREAMED = 2, 4  # ProcessingMode.BodySendMode
OVERWRITE = 2  # HeaderValueOption.HeaderAppendAction: OVERWRITE_IF_EXISTS_OR_ADD

_PACKAGE = "edge_release.ext_proc"
_SCHEMA = """
HeaderValue { string key = 1; string value = 2; bytes raw_value = 3; }
HeaderMap { repeated HeaderValue headers = 1; }
HeaderValueOption { HeaderValue header = 1; int32 append_action = 3; }
MetadataEntry { string key = 1; Struct value = 2; }
Metadata { repeated MetadataEntry filter_metadata = 1; }

HttpHeaders { HeaderMap headers = 1; bool end_of_stream = 3; }
HttpBody { bytes body = 1; bool end_of_stream = 2; }
HttpTrailers { HeaderMap trailers = 1; }
ProtocolConfiguration { int32 request_body_mode = 1; int32 response_body_mode = 2; }
ProcessingRequest {
  HttpHeaders request_headers = 2; HttpHeaders response_headers = 3;
  HttpBody request_body = 4; HttpBody response_body = 5;
  HttpTrailers request_trailers = 6; HttpTrailers response_trailers = 7;
  Metadata metadata_context = 8; ProtocolConfiguration protocol_config = 11;
}

HeaderMutation { repeated HeaderValueOption set_headers = 1; repeated string remove_headers = 2; }
StreamedBodyResponse { bytes body = 1; bool end_of_stream = 2; }
BodyMutation { bytes body = 1; StreamedBodyResponse streamed_response = 3; }
CommonResponse { HeaderMutation header_mutation = 2; BodyMutation body_mutation = 3; }
HeadersResponse { CommonResponse response = 1; }
BodyResponse { CommonResponse response = 1; }
TrailersResponse { HeaderMutation header_mutation = 1; }
HttpStatus { int32 code = 1; }
ImmediateResponse { HttpStatus status = 1; HeaderMutation headers = 2; bytes body = 3; string details = 5; }
ProcessingResponse {
  HeadersResponse request_headers = 1; HeadersResponse response_headers = 2;
  BodyResponse request_body = 3; BodyResponse response_body = 4;
  TrailersResponse request_trailers = 5; TrailersResponse response_trailers = 6;
  ImmediateResponse immediate_response = 7; Struct dynamic_metadata = 8;
}
"""
_MESSAGE = re.compile(r"(\w+) \{(.*?)\}", re.DOTALL)
_FIELD = re.compile(r"(repeated )?(\w+) (\w+) = (\d+);")
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
}


def _made() -> dict[str, Any]:
    """Return the schema's message classes by name."""
    file = descriptor_pb2.FileDescriptorProto(name="edge_release/ext_proc.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(Struct.DESCRIPTOR.file.name)
    for name, fields in _MESSAGE.findall(_SCHEMA):
        message = file.message_type.add(name=name)
        for repeated, kind, field, number in _FIELD.findall(fields):
            label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            added = message.field.add(name=field, number=int(number), label=label)
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
            else:
                added.type_name = ".google.protobuf.Struct" if kind == "Struct" else f".{_PACKAGE}.{kind}"
    found = descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return {n: message_factory.GetMessageClass(d) for n, d in found.message_types_by_name.items()}


_CLASSES = _made()
HeaderValue = _CLASSES["HeaderValue"]
HeaderMap = _CLASSES["HeaderMap"]
HeaderValueOption = _CLASSES["HeaderValueOption"]
Metadata = _CLASSES["Metadata"]
HttpHeaders = _CLASSES["HttpHeaders"]
HttpBody = _CLASSES["HttpBody"]
ProcessingRequest = _CLASSES["ProcessingRequest"]
HeaderMutation = _CLASSES["HeaderMutation"]
StreamedBodyResponse = _CLASSES["StreamedBodyResponse"]
BodyMutation = _CLASSES["BodyMutation"]
CommonResponse = _CLASSES["CommonResponse"]
HeadersResponse = _CLASSES["HeadersResponse"]
BodyResponse = _CLASSES["BodyResponse"]
TrailersResponse = _CLASSES["TrailersResponse"]
HttpStatus = _CLASSES["HttpStatus"]
ImmediateResponse = _CLASSES["ImmediateResponse"]
ProcessingResponse = _CLASSES["ProcessingResponse"]
