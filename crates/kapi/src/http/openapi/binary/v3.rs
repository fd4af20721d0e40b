//! The messages of OpenAPI 3.0: `openapi.v3` of gnostic-models' `OpenAPIv3.proto`. What nobody writes for Kubernetes' kinds
//! (callbacks, links, headers, examples, servers, OAuth) is left out.

use super::{
    EXTENSIONS, Field, Form,
    v2::{EXTERNAL_DOCS, TAG},
};

pub(super) static DOCUMENT: &[Field] = &[
    ("openapi", 1, Form::Text),
    ("info", 2, Form::Message(&INFO)),
    ("paths", 4, Form::Paths(&PATH_ITEM, [1, 2])),
    ("components", 5, Form::Message(&COMPONENTS)),
    ("security", 6, Form::Requirements),
    ("tags", 7, Form::Messages(&TAG)),
    ("externalDocs", 8, Form::Message(&EXTERNAL_DOCS)),
    (EXTENSIONS, 9, Form::Any),
];

static INFO: &[Field] = &[
    ("title", 1, Form::Text),
    ("description", 2, Form::Text),
    ("termsOfService", 3, Form::Text),
    ("contact", 4, Form::Message(&super::v2::CONTACT)),
    ("license", 5, Form::Message(&super::v2::LICENSE)),
    ("version", 6, Form::Text),
    (EXTENSIONS, 7, Form::Any),
    ("summary", 8, Form::Text),
];

static COMPONENTS: &[Field] = &[
    ("schemas", 1, Form::NamedOrReferences(&SCHEMA)),
    ("responses", 2, Form::NamedOrReferences(&RESPONSE)),
    ("parameters", 3, Form::NamedOrReferences(&PARAMETER)),
    ("requestBodies", 5, Form::NamedOrReferences(&REQUEST_BODY)),
    ("securitySchemes", 7, Form::NamedOrReferences(&SECURITY_SCHEME)),
    (EXTENSIONS, 10, Form::Any),
];

static SECURITY_SCHEME: &[Field] = &[
    ("type", 1, Form::Text),
    ("description", 2, Form::Text),
    ("name", 3, Form::Text),
    ("in", 4, Form::Text),
    ("scheme", 5, Form::Text),
    ("bearerFormat", 6, Form::Text),
    ("openIdConnectUrl", 8, Form::Text),
    (EXTENSIONS, 9, Form::Any),
];

static PATH_ITEM: &[Field] = &[
    ("$ref", 1, Form::Text),
    ("summary", 2, Form::Text),
    ("description", 3, Form::Text),
    ("get", 4, Form::Message(&OPERATION)),
    ("put", 5, Form::Message(&OPERATION)),
    ("post", 6, Form::Message(&OPERATION)),
    ("delete", 7, Form::Message(&OPERATION)),
    ("options", 8, Form::Message(&OPERATION)),
    ("head", 9, Form::Message(&OPERATION)),
    ("patch", 10, Form::Message(&OPERATION)),
    ("trace", 11, Form::Message(&OPERATION)),
    ("parameters", 13, Form::OrReferences(&PARAMETER)),
    (EXTENSIONS, 14, Form::Any),
];

static OPERATION: &[Field] = &[
    ("tags", 1, Form::Texts),
    ("summary", 2, Form::Text),
    ("description", 3, Form::Text),
    ("externalDocs", 4, Form::Message(&EXTERNAL_DOCS)),
    ("operationId", 5, Form::Text),
    ("parameters", 6, Form::OrReferences(&PARAMETER)),
    ("requestBody", 7, Form::OrReference(&REQUEST_BODY)),
    ("responses", 8, Form::ResponsesOrReferences(&RESPONSE)),
    ("deprecated", 10, Form::Flag),
    ("security", 11, Form::Requirements),
    (EXTENSIONS, 13, Form::Any),
];

static PARAMETER: &[Field] = &[
    ("name", 1, Form::Text),
    ("in", 2, Form::Text),
    ("description", 3, Form::Text),
    ("required", 4, Form::Flag),
    ("deprecated", 5, Form::Flag),
    ("allowEmptyValue", 6, Form::Flag),
    ("style", 7, Form::Text),
    ("explode", 8, Form::Flag),
    ("allowReserved", 9, Form::Flag),
    ("schema", 10, Form::OrReference(&SCHEMA)),
    ("example", 11, Form::Any),
    ("content", 13, Form::Named(&MEDIA_TYPE)),
    (EXTENSIONS, 14, Form::Any),
];

static REQUEST_BODY: &[Field] = &[
    ("description", 1, Form::Text),
    ("content", 2, Form::Named(&MEDIA_TYPE)),
    ("required", 3, Form::Flag),
    (EXTENSIONS, 4, Form::Any),
];

static RESPONSE: &[Field] =
    &[("description", 1, Form::Text), ("content", 3, Form::Named(&MEDIA_TYPE)), (EXTENSIONS, 5, Form::Any)];

static MEDIA_TYPE: &[Field] =
    &[("schema", 1, Form::OrReference(&SCHEMA)), ("example", 2, Form::Any), (EXTENSIONS, 5, Form::Any)];

pub(super) static REFERENCE: &[Field] =
    &[("$ref", 1, Form::Text), ("summary", 2, Form::Text), ("description", 3, Form::Text)];

static SCHEMA: &[Field] = &[
    ("nullable", 1, Form::Flag),
    ("readOnly", 3, Form::Flag),
    ("writeOnly", 4, Form::Flag),
    ("externalDocs", 6, Form::Message(&EXTERNAL_DOCS)),
    ("example", 7, Form::Any),
    ("deprecated", 8, Form::Flag),
    ("title", 9, Form::Text),
    ("multipleOf", 10, Form::Double),
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
    ("maxProperties", 21, Form::Int),
    ("minProperties", 22, Form::Int),
    ("required", 23, Form::Texts),
    ("enum", 24, Form::Anys),
    ("type", 25, Form::Text),
    ("allOf", 26, Form::OrReferences(&SCHEMA)),
    ("oneOf", 27, Form::OrReferences(&SCHEMA)),
    ("anyOf", 28, Form::OrReferences(&SCHEMA)),
    ("not", 29, Form::Message(&SCHEMA)),
    ("items", 30, Form::ItemsOrReference(&SCHEMA)),
    ("properties", 31, Form::NamedOrReferences(&SCHEMA)),
    ("additionalProperties", 32, Form::AdditionalOrReference(&SCHEMA)),
    ("default", 33, Form::Scalar),
    ("description", 34, Form::Text),
    ("format", 35, Form::Text),
    (EXTENSIONS, 36, Form::Any),
];
