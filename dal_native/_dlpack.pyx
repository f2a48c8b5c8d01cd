# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""bfloat16 out of a DLPack capsule, which NumPy does not read: the same memory, seen as its bits.

The structures are those of DLPack's C interface, version 1 and the one before it.
"""

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_SetName
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef struct Tensor:
    void* data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t code
    uint8_t bits
    uint16_t lanes
    int64_t* shape
    int64_t* strides  # in elements; NULL for C order
    uint64_t byte_offset

cdef struct Managed:
    Tensor tensor
    void* context
    void (*deleter)(Managed*) noexcept

cdef struct Versioned:
    uint32_t major
    uint32_t minor
    void* context
    void (*deleter)(Versioned*) noexcept
    uint64_t flags
    Tensor tensor

cdef enum:
    BFLOAT = 4  # kDLBfloat
    READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
    MAX_NDIM = 32


cdef class BFloat16Bits:
    """The bfloat16 numbers of an unused capsule as a buffer of uint16, without a copy.

    `devices` are the types of DLPack devices whose memory the processor can read. The capsule is used up, and
    its owner told to let go when this buffer and all views of it are gone. Where it is refused it stays as it
    was.

    Raises
    ------
    BufferError
        No unused capsule of DLPack 1 or before; not bfloat16; not in memory that the processor can read.
    """

    cdef Managed* managed
    cdef Versioned* versioned
    cdef void* data
    cdef bint read_only
    cdef int ndim
    cdef Py_ssize_t size
    cdef bint contiguous
    cdef Py_ssize_t shape[MAX_NDIM]
    cdef Py_ssize_t strides[MAX_NDIM]

    def __cinit__(self, object capsule, tuple devices):
        cdef Tensor* tensor
        cdef Managed* managed = NULL
        cdef Versioned* versioned = NULL
        if PyCapsule_IsValid(capsule, b"dltensor_versioned"):
            versioned = <Versioned*>PyCapsule_GetPointer(capsule, b"dltensor_versioned")
            if versioned.major != 1:
                raise BufferError(f"a capsule of DLPack {versioned.major}")
            tensor = &versioned.tensor
            self.read_only = (versioned.flags & READ_ONLY) != 0
        elif PyCapsule_IsValid(capsule, b"dltensor"):
            managed = <Managed*>PyCapsule_GetPointer(capsule, b"dltensor")
            tensor = &managed.tensor
        else:
            raise BufferError("not an unused DLPack capsule")
        if tensor.code != BFLOAT or tensor.bits != 16 or tensor.lanes != 1:
            raise BufferError("not bfloat16")
        if tensor.device_type not in devices:
            raise BufferError(f"on device ({tensor.device_type}, {tensor.device_id})")
        if tensor.ndim < 0 or tensor.ndim > MAX_NDIM:
            raise BufferError(f"{tensor.ndim} dimensions")
        self.take_layout(tensor)
        if versioned != NULL:
            PyCapsule_SetName(capsule, b"used_dltensor_versioned")
        else:
            PyCapsule_SetName(capsule, b"used_dltensor")
        self.managed, self.versioned = managed, versioned

    cdef int take_layout(self, Tensor* tensor) except -1:
        cdef Py_ssize_t expected = 2
        cdef int axis
        self.ndim, self.size, self.contiguous = tensor.ndim, 1, True
        for axis in range(self.ndim - 1, -1, -1):
            if tensor.shape[axis] < 0:
                raise BufferError(f"an axis of {tensor.shape[axis]}")
            self.shape[axis] = tensor.shape[axis]
            self.strides[axis] = expected if tensor.strides == NULL else 2 * tensor.strides[axis]
            if self.shape[axis] > 1 and self.strides[axis] != expected:
                self.contiguous = False
            expected *= max(self.shape[axis], 1)
            self.size *= self.shape[axis]
        self.data = <void*>(<char*>tensor.data + tensor.byte_offset) if self.size else <void*>self
        return 0

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.read_only and flags & PyBUF_WRITABLE:
            raise BufferError("read-only")
        if not self.contiguous and flags & PyBUF_STRIDES != PyBUF_STRIDES:
            raise BufferError("strided")
        view.buf = self.data
        view.obj = self
        view.len = 2 * self.size
        view.itemsize = 2
        view.readonly = self.read_only
        view.ndim = self.ndim
        view.format = b"H"
        view.shape = self.shape
        view.strides = self.strides
        view.suboffsets = NULL
        view.internal = NULL

    def __dealloc__(self):
        if self.versioned != NULL and self.versioned.deleter != NULL:
            self.versioned.deleter(self.versioned)
        if self.managed != NULL and self.managed.deleter != NULL:
            self.managed.deleter(self.managed)
