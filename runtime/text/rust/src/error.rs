//! The errors that cross the C ABI, as a code and a message.

/// The values are part of the ABI (rust_abi.h).
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(i32)]
pub enum Code {
    InvalidArgument = 1,
    ResourceExhausted = 2,
    Internal = 3,
}

#[derive(Debug)]
pub struct TextError {
    pub code: Code,
    pub message: String,
}

impl TextError {
    pub fn invalid(message: impl Into<String>) -> Self {
        TextError { code: Code::InvalidArgument, message: message.into() }
    }

    pub fn exhausted(message: impl Into<String>) -> Self {
        TextError { code: Code::ResourceExhausted, message: message.into() }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        TextError { code: Code::Internal, message: message.into() }
    }
}
