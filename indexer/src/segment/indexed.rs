//! Which payload fields of a collection have an index, and what of a point goes into it.
//!
//! Declared fields do. Where ids are routed by their part before `/`, or by range, that part is one more field
//! under a name that filters from outside cannot carry past their check: so one tenant's search
//! looks at no row of another.

use std::borrow::Cow;

use shoal_schemas::{
    Collection, FieldKind, Filter, Payload, Tenant, filter::Fields, payload::Value,
};

/// The field that holds an id's part before `/`.
const TENANT: &str = "\u{0}tenant";

/// The fields that are indexed, with their kinds.
pub fn fields(collection: &Collection) -> Fields {
    let mut fields = collection.fields.clone();
    if collection.has_tenants() {
        fields.insert(TENANT.to_owned(), FieldKind::Keyword);
    }
    fields
}

/// A point's payload as the index takes it.
pub fn payload<'a>(fields: &Fields, id: &str, payload: &'a Payload) -> Cow<'a, Payload> {
    let tenant = id.split_once('/').map(|(tenant, _)| tenant);
    match tenant.filter(|_| fields.contains_key(TENANT)) {
        None => Cow::Borrowed(payload),
        Some(tenant) => {
            let mut with_tenant = payload.clone();
            let value = Value::String(tenant.to_owned());
            with_tenant.0.insert(TENANT.to_owned(), value);
            Cow::Owned(with_tenant)
        }
    }
}

/// A question's filter, narrowed to a tenant.
pub fn narrowed(filter: Option<&Filter>, tenant: Option<&Tenant>) -> Option<Filter> {
    let of_tenant = tenant.map(|tenant| Filter::In {
        field: TENANT.to_owned(),
        values: vec![Value::String(tenant.as_str().to_owned())],
    });
    match (of_tenant, filter.cloned()) {
        (Some(tenant), Some(filter)) => Some(Filter::All(vec![tenant, filter])),
        (tenant, filter) => tenant.or(filter),
    }
}
