//! Kafka's ids of topics. rust-rdkafka does not ask for them, so librdkafka is asked here directly.
#![expect(
    unsafe_code,
    reason = "librdkafka's DescribeTopics has no safe wrapper"
)]

use std::{
    collections::BTreeSet,
    ffi::{CStr, CString, c_char, c_int},
    ptr::{self, NonNull},
    slice,
    time::Duration,
};

use rdkafka::{
    bindings as raw,
    client::{Client, ClientContext},
    error::{KafkaError, RDKafkaErrorCode},
};
use shoal_schemas::TopicId;

/// A pointer that librdkafka gave us to keep, and what gives it back.
struct Owned<T> {
    at: NonNull<T>,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// # Safety
    /// `at` is null, or nobody else destroys it and `destroy` is what does.
    unsafe fn new(at: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Result<Self, KafkaError> {
        let at = NonNull::new(at).ok_or(KafkaError::AdminOp(RDKafkaErrorCode::Fail))?;
        Ok(Self { at, destroy })
    }

    fn as_ptr(&self) -> *mut T {
        self.at.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `new` asks that the pointer is ours, and it is given back here alone.
        unsafe { (self.destroy)(self.at.as_ptr()) }
    }
}

/// The id of each topic, in the order of `names`; `None` where the broker tells none. Blocks for `timeout` at most.
///
/// # Errors
/// What librdkafka says of the whole request. A topic that is not there is no error.
pub(super) fn ask<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    timeout: Duration,
) -> Result<Vec<Option<TopicId>>, KafkaError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let invalid = |_| KafkaError::AdminOp(RDKafkaErrorCode::InvalidTopic);
    let texts: Result<Vec<_>, _> = names.iter().map(|name| CString::new(*name)).collect();
    let texts = texts.map_err(invalid)?;
    // librdkafka refuses a name that stands there twice.
    let once: BTreeSet<&CStr> = texts.iter().map(CString::as_c_str).collect();
    let event = describe(client, &once, timeout)?;
    // SAFETY: the event lives until the end of this function.
    let code = unsafe { raw::rd_kafka_event_error(event.as_ptr()) };
    if code != raw::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Err(KafkaError::AdminOp(code.into()));
    }
    // SAFETY: as above; the result is null if the event is of another kind.
    let result = unsafe { raw::rd_kafka_event_DescribeTopics_result(event.as_ptr()) };
    if result.is_null() {
        return Err(KafkaError::AdminOp(RDKafkaErrorCode::Fail));
    }
    let mut count = 0;
    // SAFETY: the result is not null and lives as long as the event; so do the descriptions.
    let described = unsafe { raw::rd_kafka_DescribeTopics_result_topics(result, &raw mut count) };
    if described.is_null() {
        return Ok(vec![None; names.len()]);
    }
    // SAFETY: librdkafka says that so many pointers stand there, for as long as the event lives.
    let described = unsafe { slice::from_raw_parts(described, count) };
    let mut ids = vec![None; names.len()];
    for topic in described {
        // SAFETY: each pointer is null or a description's that lives as long as the event.
        let Some((name, id)) = (unsafe { read(*topic) }) else {
            continue;
        };
        for (wanted, into) in texts.iter().zip(&mut ids) {
            if wanted.as_c_str() == name {
                *into = Some(id.clone());
            }
        }
    }
    Ok(ids)
}

/// Asks, and waits for what comes back.
fn describe<C: ClientContext>(
    client: &Client<C>,
    names: &BTreeSet<&CStr>,
    timeout: Duration,
) -> Result<Owned<raw::rd_kafka_event_t>, KafkaError> {
    let millis = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    let rk = client.native_ptr();
    // SAFETY: the client lives for longer than this function, and a new queue is ours to destroy.
    let queue = unsafe { Owned::new(raw::rd_kafka_queue_new(rk), raw::rd_kafka_queue_destroy) }?;
    let operation = raw::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    // SAFETY: as above; so are new options.
    let options = unsafe {
        let made = raw::rd_kafka_AdminOptions_new(rk, operation);
        Owned::new(made, raw::rd_kafka_AdminOptions_destroy)
    }?;
    // SAFETY: the options are ours; no text of an error is asked for.
    let set = unsafe {
        raw::rd_kafka_AdminOptions_set_request_timeout(options.as_ptr(), millis, ptr::null_mut(), 0)
    };
    if set != raw::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Err(KafkaError::AdminOp(set.into()));
    }
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: so many names stand there, each ends with a nul, and librdkafka copies them.
    let topics = unsafe {
        let made =
            raw::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        Owned::new(made, raw::rd_kafka_TopicCollection_destroy)
    }?;
    // SAFETY: all four live; librdkafka copies topics and options, and holds the queue by a count of its own.
    unsafe {
        raw::rd_kafka_DescribeTopics(rk, topics.as_ptr(), options.as_ptr(), queue.as_ptr());
    }
    // A request that runs out of time comes back as an event that says so: that one is waited for.
    // SAFETY: the queue is ours, and so is the event that comes from it.
    unsafe {
        let event = raw::rd_kafka_queue_poll(queue.as_ptr(), -1);
        Owned::new(event, raw::rd_kafka_event_destroy)
    }
}

/// Name and id of a topic; `None` if it is not there or has no id.
///
/// # Safety
/// `topic` is null or a description, and its event lives for `'a`.
unsafe fn read<'a>(topic: *const raw::rd_kafka_TopicDescription_t) -> Option<(&'a CStr, TopicId)> {
    // A place that the broker's answer left empty.
    if topic.is_null() {
        return None;
    }
    let none = raw::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
    // SAFETY: the caller's.
    let error = unsafe { raw::rd_kafka_TopicDescription_error(topic) };
    // SAFETY: an error is null or lives as long as its description, and the code of null is "no error".
    let code = unsafe { raw::rd_kafka_error_code(error) };
    // SAFETY: the caller's.
    let name = unsafe { raw::rd_kafka_TopicDescription_name(topic) };
    // SAFETY: the caller's.
    let id = unsafe { raw::rd_kafka_TopicDescription_topic_id(topic) };
    if code != none || name.is_null() || id.is_null() {
        return None;
    }
    // SAFETY: an id that is not null lives as long as its description.
    let high = unsafe { raw::rd_kafka_Uuid_most_significant_bits(id) };
    // SAFETY: as above.
    let low = unsafe { raw::rd_kafka_Uuid_least_significant_bits(id) };
    if (high, low) == (0, 0) {
        return None;
    }
    // SAFETY: as above; nobody else uses this id, whose text is written when it is first asked for.
    let text = unsafe { raw::rd_kafka_Uuid_base64str(id) };
    if text.is_null() {
        return None;
    }
    // SAFETY: the text is the id's own and ends with a nul.
    let text = unsafe { CStr::from_ptr(text) };
    // SAFETY: the name is the description's own and ends with a nul.
    let name = unsafe { CStr::from_ptr(name) };
    Some((name, TopicId::from(text.to_str().ok()?)))
}
