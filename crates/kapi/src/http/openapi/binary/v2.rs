//! The messages of Swagger 2.0: `openapi.v2` of gnostic-models' `OpenAPIv2.proto`.

use super::{EXTENSIONS, Field, Form};

pub(super) static DOCUMENT: &[Field] = &[
    ("swagger", 1, Form::Text),
    ("info", 2, Form::Message(&INFO)),
    ("host", 3, Form::Text),
    ("basePath", 4, Form::Text),
    ("schemes", 5, Form::Texts),
    ("consumes", 6, Form::Texts),
    ("produces", 7, Form::Texts),
    ("paths", 8, Form::Paths(&PATH_ITEM, [2, 1])),
    ("definitions", 9, Form::Named(&SCHEMA)),
    ("security", 12, Form::Requirements),
    ("securityDefinitions", 13, Form::SecurityDefinitions),
    ("tags", 14, Form::Messages(&TAG)),
    ("externalDocs", 15, Form::Message(&EXTERNAL_DOCS)),
    (EXTENSIONS, 16, Form::Any),
];

static INFO: &[Field] = &[
    ("title", 1, Form::Text),
    ("version", 2, Form::Text),
    ("description", 3, Form::Text),
    ("termsOfService", 4, Form::Text),
    ("contact", 5, Form::Message(&CONTACT)),
    ("license", 6, Form::Message(&LICENSE)),
    (EXTENSIONS, 7, Form::Any),
];

pub(super) static CONTACT: &[Field] =
    &[("name", 1, Form::Text), ("url", 2, Form::Text), ("email", 3, Form::Text), (EXTENSIONS, 4, Form::Any)];

pub(super) static LICENSE: &[Field] =
    &[("name", 1, Form::Text), ("url", 2, Form::Text), (EXTENSIONS, 3, Form::Any)];

pub(super) static EXTERNAL_DOCS: &[Field] =
    &[("description", 1, Form::Text), ("url", 2, Form::Text), (EXTENSIONS, 3, Form::Any)];

pub(super) static TAG: &[Field] = &[
    ("name", 1, Form::Text),
    ("description", 2, Form::Text),
    ("externalDocs", 3, Form::Message(&EXTERNAL_DOCS)),
    (EXTENSIONS, 4, Form::Any),
];

static PATH_ITEM: &[Field] = &[
    ("$ref", 1, Form::Text),
    ("get", 2, Form::Message(&OPERATION)),
    ("put", 3, Form::Message(&OPERATION)),
    ("post", 4, Form::Message(&OPERATION)),
    ("delete", 5, Form::Message(&OPERATION)),
    ("options", 6, Form::Message(&OPERATION)),
    ("head", 7, Form::Message(&OPERATION)),
    ("patch", 8, Form::Message(&OPERATION)),
    ("parameters", 9, Form::Parameters),
    (EXTENSIONS, 10, Form::Any),
];

static OPERATION: &[Field] = &[
    ("tags", 1, Form::Texts),
    ("summary", 2, Form::Text),
    ("description", 3, Form::Text),
    ("externalDocs", 4, Form::Message(&EXTERNAL_DOCS)),
    ("operationId", 5, Form::Text),
    ("produces", 6, Form::Texts),
    ("consumes", 7, Form::Texts),
    ("parameters", 8, Form::Parameters),
    ("responses", 9, Form::Responses),
    ("schemes", 10, Form::Texts),
    ("deprecated", 11, Form::Flag),
    ("security", 12, Form::Requirements),
    (EXTENSIONS, 13, Form::Any),
];

/// Headers and examples of answers, which nobody writes for Kubernetes' kinds, are left out.
pub(super) static RESPONSE: &[Field] =
    &[("description", 1, Form::Text), ("schema", 2, Form::Wrapped(&SCHEMA)), (EXTENSIONS, 5, Form::Any)];

pub(super) static REFERENCE: &[Field] = &[("$ref", 1, Form::Text), ("description", 2, Form::Text)];

pub(super) static BODY_PARAMETER: &[Field] = &[
    ("description", 1, Form::Text),
    ("name", 2, Form::Text),
    ("in", 3, Form::Text),
    ("required", 4, Form::Flag),
    ("schema", 5, Form::Message(&SCHEMA)),
    (EXTENSIONS, 6, Form::Any),
];

/// Parameters in the query and in forms.
pub(super) static QUERY_PARAMETER: &[Field] = &[
    ("required", 1, Form::Flag),
    ("in", 2, Form::Text),
    ("description", 3, Form::Text),
    ("name", 4, Form::Text),
    ("allowEmptyValue", 5, Form::Flag),
    ("type", 6, Form::Text),
    ("format", 7, Form::Text),
    ("items", 8, Form::Message(&ITEMS)),
    ("collectionFormat", 9, Form::Text),
    ("default", 10, Form::Any),
    ("maximum", 11, Form::Double),
    ("exclusiveMaximum", 12, Form::Flag),
    ("minimum", 13, Form::Double),
    ("exclusiveMinimum", 14, Form::Flag),
    ("maxLength", 15, Form::Int),
    ("minLength", 16, Form::Int),
    ("pattern", 17, Form::Text),
    ("maxItems", 18, Form::Int),
    ("minItems", 19, Form::Int),
    ("uniqueItems", 20, Form::Flag),
    ("enum", 21, Form::Anys),
    ("multipleOf", 22, Form::Double),
    (EXTENSIONS, 23, Form::Any),
];

/// Parameters in the path and in headers: as above, without `allowEmptyValue`.
pub(super) static PATH_PARAMETER: &[Field] = &[
    ("required", 1, Form::Flag),
    ("in", 2, Form::Text),
    ("description", 3, Form::Text),
    ("name", 4, Form::Text),
    ("type", 5, Form::Text),
    ("format", 6, Form::Text),
    ("items", 7, Form::Message(&ITEMS)),
    ("collectionFormat", 8, Form::Text),
    ("default", 9, Form::Any),
    ("maximum", 10, Form::Double),
    ("exclusiveMaximum", 11, Form::Flag),
    ("minimum", 12, Form::Double),
    ("exclusiveMinimum", 13, Form::Flag),
    ("maxLength", 14, Form::Int),
    ("minLength", 15, Form::Int),
    ("pattern", 16, Form::Text),
    ("maxItems", 17, Form::Int),
    ("minItems", 18, Form::Int),
    ("uniqueItems", 19, Form::Flag),
    ("enum", 20, Form::Anys),
    ("multipleOf", 21, Form::Double),
    (EXTENSIONS, 22, Form::Any),
];

/// What a parameter is a list of.
static ITEMS: &[Field] = &[
    ("type", 1, Form::Text),
    ("format", 2, Form::Text),
    ("items", 3, Form::Message(&ITEMS)),
    ("collectionFormat", 4, Form::Text),
    ("default", 5, Form::Any),
    ("pattern", 12, Form::Text),
    ("enum", 16, Form::Anys),
    (EXTENSIONS, 18, Form::Any),
];

pub(super) static SCHEMA: &[Field] = &[
    ("$ref", 1, Form::Text),
    ("format", 2, Form::Text),
    ("title", 3, Form::Text),
    ("description", 4, Form::Text),
    ("default", 5, Form::Any),
    ("multipleOf", 6, Form::Double),
    ("maximum", 7, Form::Double),
    ("exclusiveMaximum", 8, Form::Flag),
    ("minimum", 9, Form::Double),
    ("exclusiveMinimum", 10, Form::Flag),
    ("maxLength", 11, Form::Int),
    ("minLength", 12, Form::Int),
    ("pattern", 13, Form::Text),
    ("maxItems", 14, Form::Int),
    ("minItems", 15, Form::Int),
    ("uniqueItems", 16, Form::Flag),
    ("maxProperties", 17, Form::Int),
    ("minProperties", 18, Form::Int),
    ("required", 19, Form::Texts),
    ("enum", 20, Form::Anys),
    ("additionalProperties", 21, Form::Additional),
    ("type", 22, Form::TypeItem),
    ("items", 23, Form::Items),
    ("allOf", 24, Form::Messages(&SCHEMA)),
    ("properties", 25, Form::Named(&SCHEMA)),
    ("discriminator", 26, Form::Text),
    ("readOnly", 27, Form::Flag),
    ("externalDocs", 29, Form::Message(&EXTERNAL_DOCS)),
    ("example", 30, Form::Any),
    (EXTENSIONS, 31, Form::Any),
];

pub(super) static API_KEY: &[Field] = &[
    ("type", 1, Form::Text),
    ("name", 2, Form::Text),
    ("in", 3, Form::Text),
    ("description", 4, Form::Text),
    (EXTENSIONS, 5, Form::Any),
];
pub(super) static BASIC: &[Field] =
    &[("type", 1, Form::Text), ("description", 2, Form::Text), (EXTENSIONS, 3, Form::Any)];
