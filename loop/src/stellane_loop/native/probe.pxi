# Whether io_uring can be had here: the C core's probe, as a Python value.

cdef extern from "core/st_uring_probe.h":
    enum:
        ST_URING_MESSAGE_BYTES
    ctypedef struct st_uring_report:
        int reason
        int error
        unsigned setup_flags
        char message[ST_URING_MESSAGE_BYTES]
    int st_uring_probe(st_uring_report *report) nogil
    const char *st_uring_reason_name(int reason) nogil


def _probe_io_uring():
    """(reason word, message, errno or 0, granted setup flags)."""
    cdef st_uring_report report
    with nogil:
        st_uring_probe(&report)
    return st_uring_reason_name(report.reason).decode(), report.message.decode(), -report.error, report.setup_flags
