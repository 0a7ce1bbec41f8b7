//! The C ABI of rust_abi.h. Every call catches panics: they become an error of code Internal.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{catch_unwind, set_hook, AssertUnwindSafe};
use std::slice;
use std::sync::{Arc, Once};

use crate::chat_template::{ChatTemplate, Message};
use crate::error::{Code, TextError};
use crate::stream::TokenStream;
use crate::tokenizer::Tokenizer;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Slice {
    data: *const u8,
    size: usize,
}

#[repr(C)]
pub struct ChatMessage {
    role: Slice,
    content: Slice,
}

#[repr(C)]
pub struct Sink {
    context: *mut c_void,
    write: extern "C" fn(*mut c_void, *const c_void, usize),
}

impl Sink {
    fn write<T>(&self, items: &[T]) {
        (self.write)(self.context, items.as_ptr().cast(), items.len());
    }
}

/// # Safety
/// `data` is null with `size` 0, or has `size` elements that live as long as the result is used.
unsafe fn items<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        return &[];
    }
    unsafe { slice::from_raw_parts(data, size) }
}

/// # Safety
/// As `items`.
unsafe fn text<'a>(slice: Slice, what: &str) -> Result<&'a str, TextError> {
    let bytes = unsafe { items(slice.data, slice.size) };
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        TextError::invalid(format!("{what} is not valid UTF-8 at byte {at}"))
    })
}

fn guarded(error: Sink, body: impl FnOnce() -> Result<(), TextError>) -> i32 {
    guarded_as(Code::Internal, error, body)
}

fn guarded_as(panic_code: Code, error: Sink, body: impl FnOnce() -> Result<(), TextError>) -> i32 {
    static QUIET: Once = Once::new();
    // The message goes into the error, not to stderr.
    QUIET.call_once(|| set_hook(Box::new(|_| {})));
    let result = catch_unwind(AssertUnwindSafe(body));
    let Err(failure) = result.unwrap_or_else(|panic| Err(panic_error(panic_code, panic))) else {
        return 0;
    };
    error.write(failure.message.as_bytes());
    failure.code as i32
}

fn panic_error(code: Code, panic: Box<dyn Any + Send>) -> TextError {
    let message = panic.downcast_ref::<&str>().map(|message| message.to_string());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
    let message = message.unwrap_or_default();
    TextError { code, message: format!("text processing failed: {message}") }
}

fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: the handle came from Box::into_raw and is given back once (rust_abi.h).
        let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(handle) })));
    }
}

/// # Safety
/// rust_abi.h says what every pointer must be; so for all functions below.
#[no_mangle]
pub unsafe extern "C" fn moed_tokenizer_new(
    json: Slice,
    tokenizer: *mut *mut Arc<Tokenizer>,
    error: Sink,
) -> i32 {
    // The parser panics on some malformed files.
    guarded_as(Code::InvalidArgument, error, || unsafe {
        let loaded = Tokenizer::new(items(json.data, json.size))?;
        *tokenizer = Box::into_raw(Box::new(Arc::new(loaded)));
        Ok(())
    })
}

#[no_mangle]
pub extern "C" fn moed_tokenizer_free(tokenizer: *mut Arc<Tokenizer>) {
    free(tokenizer);
}

/// # Safety
/// As moed_tokenizer_new.
#[no_mangle]
pub unsafe extern "C" fn moed_tokenizer_vocab_size(tokenizer: *const Arc<Tokenizer>) -> u32 {
    unsafe { (*tokenizer).vocab_size() }
}

/// # Safety
/// As moed_tokenizer_new.
#[no_mangle]
pub unsafe extern "C" fn moed_tokenizer_encode(
    tokenizer: *const Arc<Tokenizer>,
    input: Slice,
    add_special_tokens: bool,
    parse_special: bool,
    ids: Sink,
    error: Sink,
) -> i32 {
    guarded(error, || unsafe {
        let input = text(input, "the text")?;
        let whole = 0..input.len();
        let literal = if parse_special { &[] } else { slice::from_ref(&whole) };
        ids.write(&(*tokenizer).encode(input, literal, add_special_tokens)?);
        Ok(())
    })
}

/// # Safety
/// As moed_tokenizer_new.
#[no_mangle]
pub unsafe extern "C" fn moed_tokenizer_decode(
    tokenizer: *const Arc<Tokenizer>,
    ids: *const i32,
    count: usize,
    skip_special_tokens: bool,
    output: Sink,
    error: Sink,
) -> i32 {
    guarded(error, || unsafe {
        let decoded = (*tokenizer).decode(items(ids, count), skip_special_tokens)?;
        output.write(decoded.as_bytes());
        Ok(())
    })
}

/// # Safety
/// As moed_tokenizer_new.
#[no_mangle]
pub unsafe extern "C" fn moed_stream_new(
    tokenizer: *const Arc<Tokenizer>,
    skip_special_tokens: bool,
) -> *mut TokenStream {
    let tokenizer = unsafe { Arc::clone(&*tokenizer) };
    Box::into_raw(Box::new(TokenStream::new(tokenizer, skip_special_tokens)))
}

#[no_mangle]
pub extern "C" fn moed_stream_free(stream: *mut TokenStream) {
    free(stream);
}

/// # Safety
/// As moed_tokenizer_new.
#[no_mangle]
pub unsafe extern "C" fn moed_stream_push(
    stream: *mut TokenStream,
    id: i32,
    output: Sink,
    error: Sink,
) -> i32 {
    guarded(error, || unsafe {
        let negative = |_| TextError::invalid(format!("token id {id} is negative"));
        let id = u32::try_from(id).map_err(negative)?;
        output.write((*stream).push(id)?.as_bytes());
        Ok(())
    })
}

/// # Safety
/// As moed_tokenizer_new.
#[no_mangle]
pub unsafe extern "C" fn moed_stream_finish(
    stream: *mut TokenStream,
    output: Sink,
    error: Sink,
) -> i32 {
    guarded(error, || unsafe {
        output.write((*stream).finish()?.as_bytes());
        Ok(())
    })
}

/// # Safety
/// As moed_tokenizer_new.
#[no_mangle]
pub unsafe extern "C" fn moed_chat_template_new(
    source: *const Slice,
    config: Slice,
    template: *mut *mut ChatTemplate,
    error: Sink,
) -> i32 {
    guarded(error, || unsafe {
        let source = source.as_ref().map(|source| text(*source, "chat_template.jinja"));
        let config = text(config, "tokenizer_config.json")?;
        let loaded = ChatTemplate::new(source.transpose()?, config)?;
        *template = loaded.map_or(std::ptr::null_mut(), |loaded| Box::into_raw(Box::new(loaded)));
        Ok(())
    })
}

#[no_mangle]
pub extern "C" fn moed_chat_template_free(template: *mut ChatTemplate) {
    free(template);
}

/// # Safety
/// As moed_tokenizer_new.
#[no_mangle]
pub unsafe extern "C" fn moed_chat_template_render(
    template: *const ChatTemplate,
    tokenizer: *const Arc<Tokenizer>,
    messages: *const ChatMessage,
    count: usize,
    add_generation_prompt: bool,
    ids: Sink,
    error: Sink,
) -> i32 {
    guarded(error, || unsafe {
        let message = |message: &ChatMessage| {
            let role = text(message.role, "a message's role")?;
            Ok(Message { role, content: text(message.content, "a message's content")? })
        };
        let messages = items(messages, count).iter().map(message);
        let messages = messages.collect::<Result<Vec<_>, TextError>>()?;
        let tokenizer = &*tokenizer;
        let control_texts = tokenizer.control_texts();
        let rendered = (*template).render(&messages, add_generation_prompt, control_texts)?;
        ids.write(&tokenizer.encode(&rendered.text, &rendered.literal, false)?);
        Ok(())
    })
}
