/* Ordinary chunks of streamed answers, passed on without a step of Python.

   A Pump is one stream on its way to one client, a Valve stands at the connection that its replica answers on. While a
   Pump stands in the Valve, what arrives is looked at here: if it is whole chunks of whole events that ask for nothing
   but to be passed on, it is kept (for a rescue), and written to the client. Everything else goes to Python with the
   Pump taken out, and Python puts it back when what it was told is dealt with. So nothing is ever half read here: there
   is no state of a parser, and Python's path is the only one that judges bytes.

   CPython's limited API: one build serves every version from 3.11 on. See docs/adr/0021-the-hot-path-in-c.md. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS; Python ignores SIGPIPE anyway */
#endif

#define MAX_DATA (1 << 20)  /* more at once is not ordinary */
#define MAX_HEX 8           /* digits of a chunk's size; more is not ordinary */
#define DONE_WITHIN 64      /* as EventSplitter looks for it */
#define FIRST_LOG 2048

typedef struct {
    PyTypeObject *outlet_type, *pump_type;
} State;

/* What went by in one call of recv. */
typedef struct {
    const char *payload; /* of all chunks together */
    size_t length;
    const char *framed; /* as the client gets it */
    size_t framed_length;
    PyObject *owner; /* holds those bytes; a new reference */
} Piece;

/* ---- Outlet ---- */

typedef struct {
    PyObject_HEAD
    PyObject *write; /* the transport: its methods */
    PyObject *is_closing;
    PyObject *waiting; /* how many bytes wait to be sent there */
    int fd;            /* its socket; -1: everything goes through `write` */
} Outlet;

static int
outlet_traverse(PyObject *op, visitproc visit, void *arg)
{
    Outlet *self = (Outlet *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->write);
    Py_VISIT(self->is_closing);
    Py_VISIT(self->waiting);
    return 0;
}

static int
outlet_clear(PyObject *op)
{
    Outlet *self = (Outlet *)op;
    Py_CLEAR(self->write);
    Py_CLEAR(self->is_closing);
    Py_CLEAR(self->waiting);
    return 0;
}

static void
outlet_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    outlet_clear(op);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(op);
    Py_DECREF(type);
}

static int
no_keywords(PyObject *named)
{
    if (named == NULL || PyDict_Size(named) == 0)
        return 1;
    PyErr_SetString(PyExc_TypeError, "no keywords are taken");
    return 0;
}

static PyObject *
outlet_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    PyObject *write, *is_closing, *waiting;
    int fd;
    if (!no_keywords(named) || !PyArg_ParseTuple(args, "OOOi:Outlet", &write, &is_closing, &waiting, &fd))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Outlet *self = (Outlet *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(write);
    Py_INCREF(is_closing);
    Py_INCREF(waiting);
    self->write = write;
    self->is_closing = is_closing;
    self->waiting = waiting;
    self->fd = fd;
    return (PyObject *)self;
}

/* The methods are called with nothing, and answer with a number or a truth. -1 with an exception. */
static long
asked(PyObject *method)
{
    PyObject *answer = PyObject_CallNoArgs(method);
    if (answer == NULL)
        return -1;
    long number = answer == Py_True ? 1 : answer == Py_False ? 0 : PyLong_AsLong(answer);
    Py_DECREF(answer);
    if (number < 0 && !PyErr_Occurred())
        number = 1;
    return number;
}

/* Send: at once where nothing waits before it. 0, or -1 with an exception. */
static int
let_out(Outlet *self, const char *bytes, size_t length)
{
    if (self->write == NULL) /* the collector was there */
        return 0;
    long closing = asked(self->is_closing);
    if (closing != 0)
        return closing < 0 ? -1 : 0; /* the other side is gone, and the connection says so next */
    size_t sent = 0;
    if (self->fd >= 0) {
        long before = asked(self->waiting);
        if (before < 0)
            return -1;
        if (before == 0) {
            ssize_t n = send(self->fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
            sent = n > 0 ? (size_t)n : 0; /* an error is the transport's to find, below */
        }
        if (sent >= length)
            return 0;
    }
    PyObject *rest = PyBytes_FromStringAndSize(bytes + sent, (Py_ssize_t)(length - sent));
    if (rest == NULL)
        return -1;
    PyObject *done = PyObject_CallFunctionObjArgs(self->write, rest, NULL);
    Py_DECREF(rest);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static PyObject *
outlet_send(PyObject *op, PyObject *data)
{
    char *bytes;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(data, &bytes, &length) < 0 || let_out((Outlet *)op, bytes, (size_t)length) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef outlet_methods[] = {
    {"send", outlet_send, METH_O, "Send at once what can be sent; the transport sends the rest."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot outlet_slots[] = {
    {Py_tp_doc, (void *)"A transport that is written to without the loop, where nothing waits."},
    {Py_tp_new, (void *)outlet_new},
    {Py_tp_dealloc, (void *)outlet_dealloc},
    {Py_tp_traverse, (void *)outlet_traverse},
    {Py_tp_clear, (void *)outlet_clear},
    {Py_tp_methods, outlet_methods},
    {0, NULL},
};

static PyType_Spec outlet_spec = {
    "caudal.gateway._wire.Outlet", sizeof(Outlet), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, outlet_slots,
};

/* ---- Pump ---- */

typedef struct {
    PyObject_HEAD
    Outlet *outlet;  /* the client's */
    PyObject *keep;  /* takes what was kept here, once that is much */
    Py_ssize_t most;      /* bytes that are kept here */
    Py_ssize_t pieces;
    char *log;
    size_t logged, room;
} Pump;

static int
pump_traverse(PyObject *op, visitproc visit, void *arg)
{
    Pump *self = (Pump *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->outlet);
    Py_VISIT(self->keep);
    return 0;
}

static int
pump_clear(PyObject *op)
{
    Pump *self = (Pump *)op;
    Py_CLEAR(self->outlet);
    Py_CLEAR(self->keep);
    return 0;
}

static void
pump_dealloc(PyObject *op)
{
    Pump *self = (Pump *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    pump_clear(op);
    PyMem_Free(self->log);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(op);
    Py_DECREF(type);
}

static PyObject *
pump_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    PyObject *outlet, *keep;
    Py_ssize_t most;
    State *state = PyType_GetModuleState(type);
    if (state == NULL || !no_keywords(named))
        return NULL;
    if (!PyArg_ParseTuple(args, "O!On:Pump", state->outlet_type, &outlet, &keep, &most))
        return NULL;
    if (most < 0 || most > (1 << 26)) {
        PyErr_SetString(PyExc_ValueError, "most: 0 to 64 MiB");
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Pump *self = (Pump *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(outlet);
    Py_INCREF(keep);
    self->outlet = (Outlet *)outlet;
    self->keep = keep;
    self->most = most;
    return (PyObject *)self;
}

static PyObject *
pump_take(PyObject *op, PyObject *Py_UNUSED(nothing))
{
    Pump *self = (Pump *)op;
    PyObject *kept = PyBytes_FromStringAndSize(self->log, (Py_ssize_t)self->logged);
    if (kept == NULL)
        return NULL;
    PyMem_Free(self->log);
    self->log = NULL;
    self->logged = self->room = 0;
    return kept;
}

static PyObject *
pump_pieces(PyObject *op, void *Py_UNUSED(closure))
{
    Pump *self = (Pump *)op;
    return PyLong_FromSsize_t(self->pieces);
}

/* Keep an event's bytes. 0, or -1 with an exception. */
static int
pump_log(Pump *self, const char *bytes, size_t length)
{
    if (length > self->room - self->logged) {
        size_t room = self->room ? self->room : FIRST_LOG;
        while (room - self->logged < length) /* at most 64 MiB + MAX_DATA, doubled: no overflow */
            room *= 2;
        char *log = PyMem_Realloc(self->log, room);
        if (log == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->log = log;
        self->room = room;
    }
    memcpy(self->log + self->logged, bytes, length);
    self->logged += length;
    if (self->logged <= (size_t)self->most)
        return 0;
    PyObject *kept = pump_take((PyObject *)self, NULL);
    if (kept == NULL)
        return -1;
    PyObject *done = PyObject_CallFunctionObjArgs(self->keep, kept, NULL);
    Py_DECREF(kept);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static PyMethodDef pump_methods[] = {
    {"take", pump_take, METH_NOARGS, "The events that are kept here, which are not kept any more."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pump_getset[] = {
    {"pieces", pump_pieces, NULL, "How often something was passed on.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pump_slots[] = {
    {Py_tp_doc, (void *)"One stream on its way to one client."},
    {Py_tp_new, (void *)pump_new},
    {Py_tp_dealloc, (void *)pump_dealloc},
    {Py_tp_traverse, (void *)pump_traverse},
    {Py_tp_clear, (void *)pump_clear},
    {Py_tp_methods, pump_methods},
    {Py_tp_getset, pump_getset},
    {0, NULL},
};

static PyType_Spec pump_spec = {
    "caudal.gateway._wire.Pump", sizeof(Pump), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, pump_slots,
};

/* ---- what is ordinary ---- */

static int
hex_of(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* The chunk that begins at `at`: its payload's place and length. The place after it, or 0 where it is not whole, not
   plain, or the last one. `plain` becomes 0 where its size is not written as we write it. */
static size_t
chunk_at(const char *data, size_t end, size_t at, size_t *place, size_t *length, int *plain)
{
    size_t size = 0, begin = at;
    while (at < end && at - begin < MAX_HEX) {
        int digit = hex_of((unsigned char)data[at]);
        if (digit < 0)
            break;
        if (data[at] >= 'A' && data[at] <= 'F')
            *plain = 0;
        size = size * 16 + (size_t)digit;
        at++;
    }
    if (at == begin || size == 0 || end - at < 2 || data[at] != '\r' || data[at + 1] != '\n')
        return 0;
    if (data[begin] == '0')
        *plain = 0;
    at += 2;
    if (end - at < 2 || size > end - at - 2)
        return 0;
    *place = at;
    *length = size;
    at += size;
    return data[at] == '\r' && data[at + 1] == '\n' ? at + 2 : 0;
}

/* Several chunks as one. 1, or -1 with an exception. */
static int
joined(const char *data, size_t end, size_t total, Piece *piece)
{
    char head[24];
    int plain = 1, n = PyOS_snprintf(head, sizeof head, "%lx\r\n", (unsigned long)total);
    PyObject *out = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(total + (size_t)n + 2));
    if (out == NULL)
        return -1;
    char *to = PyBytes_AsString(out);
    memcpy(to, head, (size_t)n);
    size_t at = 0, filled = (size_t)n, place, length;
    while (at < end) { /* walked before: every chunk is there, and they are `total` bytes */
        at = chunk_at(data, end, at, &place, &length, &plain);
        memcpy(to + filled, data + place, length);
        filled += length;
    }
    memcpy(to + filled, "\r\n", 2);
    *piece = (Piece){to + n, total, to, filled + 2, out};
    return 1;
}

/* Take the chunks of `data` apart. 1; 0 where they are not whole and plain; -1 with an exception. */
static int
unchunked(PyObject *data, Piece *piece)
{
    const char *bytes = PyBytes_AsString(data);
    size_t end = (size_t)PyBytes_Size(data);
    size_t at = 0, total = 0, place = 0, length = 0;
    int plain = 1, chunks = 0;
    if (end > MAX_DATA)
        return 0;
    while (at < end) {
        at = chunk_at(bytes, end, at, &place, &length, &plain);
        if (at == 0)
            return 0;
        total += length;
        chunks++;
    }
    if (chunks == 0)
        return 0;
    if (chunks > 1 || !plain)
        return joined(bytes, end, total, piece);
    Py_INCREF(data); /* the client gets it in the very same frame */
    *piece = (Piece){bytes + place, length, bytes, end, data};
    return 1;
}

static int
ends_with(const char *bytes, size_t length, const char *end, size_t n)
{
    return length >= n && memcmp(bytes + length - n, end, n) == 0;
}

static int
is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Whether there may be an object called "usage": what UsageTap wants to see. */
static int
tells_usage(const char *bytes, size_t length)
{
    static const char name[] = "\"usage\"";
    const size_t n = sizeof name - 1;
    const char *at = bytes, *end = bytes + length;
    while (at < end && (at = memchr(at, 'u', (size_t)(end - at))) != NULL) {
        const char *begin = at - 1, *after;
        at++;
        if (begin < bytes || (size_t)(end - begin) < n || memcmp(begin, name, n) != 0)
            continue;
        after = begin + n;
        while (after < end && is_space(*after))
            after++;
        if (after == end || *after++ != ':')
            continue;
        while (after < end && is_space(*after))
            after++;
        if (after < end && *after == '{')
            return 1;
    }
    return 0;
}

/* Whether these are whole events that change nothing. */
static int
ordinary(const char *bytes, size_t length)
{
    static const char done[] = "data: [DONE]";
    const size_t n = sizeof done - 1;
    if (!ends_with(bytes, length, "\n\n", 2) && !ends_with(bytes, length, "\r\n\r\n", 4))
        return 0;
    size_t from = length > DONE_WITHIN ? length - DONE_WITHIN : 0;
    for (; from + n <= length; from++)
        if (bytes[from] == 'd' && memcmp(bytes + from, done, n) == 0)
            return 0;
    return !tells_usage(bytes, length);
}

/* ---- Valve ---- */

typedef struct {
    PyObject_HEAD
    PyObject *heard; /* Python's path */
    Pump *pump;      /* NULL: everything goes there */
    Py_ssize_t passed;
} Valve;

static int
valve_traverse(PyObject *op, visitproc visit, void *arg)
{
    Valve *self = (Valve *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->heard);
    Py_VISIT(self->pump);
    return 0;
}

static int
valve_clear(PyObject *op)
{
    Valve *self = (Valve *)op;
    Py_CLEAR(self->heard);
    Py_CLEAR(self->pump);
    return 0;
}

static void
valve_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    valve_clear(op);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(op);
    Py_DECREF(type);
}

static PyObject *
valve_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    PyObject *heard;
    if (!no_keywords(named) || !PyArg_ParseTuple(args, "O:Valve", &heard))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Valve *self = (Valve *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(heard);
    self->heard = heard;
    return (PyObject *)self;
}

/* 1: passed on. 0: not ordinary. -1: failed, with an exception. */
static int
passed_on(Valve *self, Pump *pump, PyObject *data)
{
    Piece piece;
    if (!PyBytes_Check(data) || pump->outlet == NULL) /* NULL: the collector was there */
        return 0;
    int taken = unchunked(data, &piece);
    if (taken <= 0)
        return taken;
    if (!ordinary(piece.payload, piece.length)) {
        Py_DECREF(piece.owner);
        return 0;
    }
    self->passed++;
    pump->pieces++;
    int failed = pump_log(pump, piece.payload, piece.length) < 0 || let_out(pump->outlet, piece.framed, piece.framed_length) < 0;
    Py_DECREF(piece.owner);
    return failed ? -1 : 1;
}

static PyObject *
valve_feed(PyObject *op, PyObject *data)
{
    Valve *self = (Valve *)op;
    Pump *pump = self->pump;
    if (pump != NULL) {
        Py_INCREF((PyObject *)pump); /* what is called may open or close the valve */
        int passed = passed_on(self, pump, data);
        Py_DECREF((PyObject *)pump);
        if (passed < 0)
            return NULL;
        if (passed)
            Py_RETURN_NONE;
        Py_CLEAR(self->pump);
    }
    if (self->heard == NULL)
        Py_RETURN_NONE;
    PyObject *heard = self->heard;
    Py_INCREF(heard);
    PyObject *done = PyObject_CallFunctionObjArgs(heard, data, NULL);
    Py_DECREF(heard);
    return done;
}

static PyObject *
valve_open(PyObject *op, PyObject *pump)
{
    Valve *self = (Valve *)op;
    State *state = PyType_GetModuleState(Py_TYPE(op));
    if (state == NULL)
        return NULL;
    if (!PyObject_TypeCheck(pump, state->pump_type)) {
        PyErr_SetString(PyExc_TypeError, "a Pump is needed");
        return NULL;
    }
    PyObject *before = (PyObject *)self->pump;
    Py_INCREF(pump);
    self->pump = (Pump *)pump;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyObject *
valve_close(PyObject *op, PyObject *Py_UNUSED(nothing))
{
    Valve *self = (Valve *)op;
    Py_CLEAR(self->pump);
    Py_RETURN_NONE;
}

static PyObject *
valve_passed(PyObject *op, void *Py_UNUSED(closure))
{
    Valve *self = (Valve *)op;
    return PyLong_FromSsize_t(self->passed);
}

static PyMethodDef valve_methods[] = {
    {"feed", valve_feed, METH_O, "What arrived: to the pump if it is ordinary, else to Python."},
    {"open", valve_open, METH_O, "Ordinary chunks go to this pump from here on."},
    {"close", valve_close, METH_NOARGS, "Everything goes to Python."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef valve_getset[] = {
    {"passed", valve_passed, NULL, "How often something went to a pump.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot valve_slots[] = {
    {Py_tp_doc, (void *)"Where a connection's bytes go."},
    {Py_tp_new, (void *)valve_new},
    {Py_tp_dealloc, (void *)valve_dealloc},
    {Py_tp_traverse, (void *)valve_traverse},
    {Py_tp_clear, (void *)valve_clear},
    {Py_tp_methods, valve_methods},
    {Py_tp_getset, valve_getset},
    {0, NULL},
};

static PyType_Spec valve_spec = {
    "caudal.gateway._wire.Valve", sizeof(Valve), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, valve_slots,
};

/* ---- what a whole answer used ---- */

#define MAX_DIGITS 15 /* of a count; more is not plain */

typedef struct {
    const char *at, *end;
} Reader;

typedef struct {
    long long prompt, completion, cached; /* -1: not told */
    int details;                          /* how often they were there */
} Counts;

static void
skip_space(Reader *in)
{
    while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r'))
        in->at++;
}

/* Whether this is what comes next, behind white space; then it is read. */
static int
next_is(Reader *in, const char *what)
{
    size_t n = strlen(what);
    skip_space(in);
    if ((size_t)(in->end - in->at) < n || memcmp(in->at, what, n) != 0)
        return 0;
    in->at += n;
    return 1;
}

/* A key of small letters and underscores, with its quotes. */
static int
plain_key(Reader *in, const char **key, size_t *length)
{
    if (!next_is(in, "\""))
        return 0;
    *key = in->at;
    while (in->at < in->end && ((*in->at >= 'a' && *in->at <= 'z') || *in->at == '_'))
        in->at++;
    *length = (size_t)(in->at - *key);
    return in->at < in->end && *in->at++ == '"';
}

static int
is_key(const char *key, size_t length, const char *name)
{
    return strlen(name) == length && memcmp(key, name, length) == 0;
}

/* A count as JSON writes it. */
static int
plain_count(Reader *in, long long *count)
{
    skip_space(in);
    const char *begin = in->at;
    long long value = 0;
    while (in->at < in->end && *in->at >= '0' && *in->at <= '9' && in->at - begin < MAX_DIGITS)
        value = value * 10 + (*in->at++ - '0');
    if (in->at == begin || (*begin == '0' && in->at - begin > 1))
        return 0;
    *count = value;
    return 1;
}

/* One object of plain keys and counts. `outer`: the usage itself; else its details of the prompt. */
static int
plain_object(Reader *in, Counts *counts, int outer)
{
    if (!next_is(in, "{"))
        return 0;
    if (next_is(in, "}"))
        return 1;
    do {
        const char *key;
        size_t length;
        long long unasked = -1, *to = &unasked;
        if (!plain_key(in, &key, &length) || !next_is(in, ":"))
            return 0;
        if (outer && is_key(key, length, "prompt_tokens"))
            to = &counts->prompt;
        else if (outer && is_key(key, length, "completion_tokens"))
            to = &counts->completion;
        else if (!outer && is_key(key, length, "cached_tokens"))
            to = &counts->cached;
        else if (outer && is_key(key, length, "prompt_tokens_details")) {
            if (counts->details++)
                return 0;
            if (next_is(in, "null"))
                continue;
            if (!plain_object(in, counts, 0)) /* no deeper: these have no details of their own */
                return 0;
            continue;
        }
        if (*to >= 0) /* told twice */
            return 0;
        if (!plain_count(in, to) && (to != &unasked || !next_is(in, "null")))
            return 0;
    } while (next_is(in, ","));
    return next_is(in, "}");
}

static PyObject *
usage_counts(PyObject *Py_UNUSED(module), PyObject *body)
{
    static const char name[] = "\"usage\"";
    const size_t n = sizeof name - 1;
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(body, &bytes, &size) < 0)
        return NULL;
    const char *at = bytes + size;
    do {
        if (at == bytes)
            Py_RETURN_NONE;
        at--;
    } while (*at != '"' || (size_t)(bytes + size - at) < n || memcmp(at, name, n) != 0);
    Reader in = {at + n, bytes + size};
    Counts told = {-1, -1, -1, 0};
    if (!next_is(&in, ":") || !plain_object(&in, &told, 1))
        Py_RETURN_NONE;
    return Py_BuildValue("LLL", told.prompt < 0 ? 0 : told.prompt, told.completion < 0 ? 0 : told.completion,
                         told.cached < 0 ? 0 : told.cached);
}

/* ---- Heads ---- */

#define MAX_HEADS 1024
#define MAX_HEAD_BYTES 2048
#define MAX_LENGTH_DIGITS 9

typedef struct {
    PyObject_HEAD
    PyObject *heads; /* dict: a head without the digits of its content-length, and what it means */
    Py_ssize_t most; /* the longest body that is accepted */
} Heads;

/* A message taken apart. */
typedef struct {
    const char *bytes;
    size_t cut;                      /* where the body begins */
    size_t digits_at, digits_end;    /* the same: it has no content-length */
    size_t length;                   /* of the body, as it says */
    size_t whole;                    /* all bytes that there are */
} Message;

static int
heads_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((Heads *)op)->heads);
    return 0;
}

static int
heads_clear(PyObject *op)
{
    Py_CLEAR(((Heads *)op)->heads);
    return 0;
}

static void
heads_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    heads_clear(op);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(op);
    Py_DECREF(type);
}

static PyObject *
heads_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    Py_ssize_t most;
    if (!no_keywords(named) || !PyArg_ParseTuple(args, "n:Heads", &most))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Heads *self = (Heads *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->most = most;
    self->heads = PyDict_New();
    if (self->heads == NULL) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static int
same_letters(const char *bytes, const char *small, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char c = bytes[i];
        if (c >= 'A' && c <= 'Z')
            c = (char)(c - 'A' + 'a');
        if (c != small[i])
            return 0;
    }
    return 1;
}

/* Take a message apart, as known_heads.py does. 0 where it has no such head, or its length is not written plainly; -1
   with an exception. */
static int
split(PyObject *data, Message *message)
{
    static const char name[] = "\ncontent-length: ";
    const size_t n = sizeof name - 1;
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(data, &bytes, &size) < 0)
        return -1;
    size_t end = (size_t)size < MAX_HEAD_BYTES ? (size_t)size : MAX_HEAD_BYTES;
    size_t at = 0, length_at = 0;
    *message = (Message){bytes, 0, 0, 0, 0, (size_t)size};
    for (;;) { /* from line feed to line feed */
        const char *found = at < end ? memchr(bytes + at, '\n', end - at) : NULL;
        if (found == NULL)
            return 0;
        at = (size_t)(found - bytes);
        if (at >= 3 && bytes[at - 1] == '\r' && bytes[at - 2] == '\n' && bytes[at - 3] == '\r')
            break;
        if (length_at == 0 && end - at > n && same_letters(bytes + at, name, n))
            length_at = at + n;
        at++;
    }
    size_t cut = at + 1;
    message->cut = cut;
    if (length_at == 0)
        return 1;
    for (at = length_at; bytes[at] != '\r'; at++) { /* there is one: the head's end */
        if (bytes[at] < '0' || bytes[at] > '9' || at - length_at == MAX_LENGTH_DIGITS)
            return 0;
        message->length = message->length * 10 + (size_t)(bytes[at] - '0');
    }
    if (at == length_at || (bytes[length_at] == '0' && at - length_at > 1))
        return 0;
    message->digits_at = length_at;
    message->digits_end = at;
    return 1;
}

static PyObject *
key_of(const Message *message)
{
    size_t digits = message->digits_end - message->digits_at;
    PyObject *key = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(message->cut - digits));
    if (key == NULL)
        return NULL;
    char *to = PyBytes_AsString(key);
    memcpy(to, message->bytes, message->digits_at);
    memcpy(to + message->digits_at, message->bytes + message->digits_end, message->cut - message->digits_end);
    return key;
}

static PyObject *
heads_find(PyObject *op, PyObject *data)
{
    Heads *self = (Heads *)op;
    Message message;
    int good = split(data, &message);
    if (good < 0)
        return NULL;
    if (!good || self->heads == NULL || message.whole - message.cut != message.length ||
        (Py_ssize_t)message.length > self->most)
        Py_RETURN_NONE;
    PyObject *key = key_of(&message);
    if (key == NULL)
        return NULL;
    PyObject *value = PyDict_GetItemWithError(self->heads, key);
    Py_DECREF(key);
    if (value == NULL) {
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_NONE;
    }
    PyObject *found = PyTuple_New(2);
    PyObject *body = PyBytes_FromStringAndSize(message.bytes + message.cut, (Py_ssize_t)message.length);
    if (found == NULL || body == NULL) {
        Py_XDECREF(found);
        Py_XDECREF(body);
        return NULL;
    }
    Py_INCREF(value);
    PyTuple_SetItem(found, 0, value);
    PyTuple_SetItem(found, 1, body);
    return found;
}

static PyObject *
heads_keep(PyObject *op, PyObject *args)
{
    Heads *self = (Heads *)op;
    PyObject *data, *value;
    Message message;
    if (!PyArg_ParseTuple(args, "OO:keep", &data, &value))
        return NULL;
    int good = split(data, &message);
    if (good < 0)
        return NULL;
    if (!good || self->heads == NULL || message.whole - message.cut != message.length)
        Py_RETURN_NONE;
    if (PyDict_Size(self->heads) >= MAX_HEADS)
        PyDict_Clear(self->heads);
    PyObject *key = key_of(&message);
    int failed = key == NULL || PyDict_SetItem(self->heads, key, value) < 0;
    Py_XDECREF(key);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef heads_methods[] = {
    {"find", heads_find, METH_O, "What is kept of the head of a whole message, and its body."},
    {"keep", heads_keep, METH_VARARGS, "The head of this whole message means this."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot heads_slots[] = {
    {Py_tp_doc, (void *)"Heads of messages that were parsed before."},
    {Py_tp_new, (void *)heads_new},
    {Py_tp_dealloc, (void *)heads_dealloc},
    {Py_tp_traverse, (void *)heads_traverse},
    {Py_tp_clear, (void *)heads_clear},
    {Py_tp_methods, heads_methods},
    {0, NULL},
};

static PyType_Spec heads_spec = {
    "caudal.gateway._wire.Heads", sizeof(Heads), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, heads_slots,
};

/* ---- the module ---- */

static PyMethodDef wire_methods[] = {
    {"usage_counts", usage_counts, METH_O, "What the last usage of a whole answer says, where it is plain."},
    {NULL, NULL, 0, NULL},
};

static int
wire_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->outlet_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &outlet_spec, NULL);
    if (state->outlet_type == NULL || PyModule_AddType(module, state->outlet_type) < 0)
        return -1;
    state->pump_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &pump_spec, NULL);
    if (state->pump_type == NULL || PyModule_AddType(module, state->pump_type) < 0)
        return -1;
    PyType_Spec *others[] = {&valve_spec, &heads_spec};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        PyObject *type = PyType_FromModuleAndSpec(module, others[i], NULL);
        if (type == NULL)
            return -1;
        int added = PyModule_AddType(module, (PyTypeObject *)type);
        Py_DECREF(type);
        if (added < 0)
            return -1;
    }
    return 0;
}

static int
wire_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->outlet_type);
    Py_VISIT(state->pump_type);
    return 0;
}

static int
wire_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->outlet_type);
    Py_CLEAR(state->pump_type);
    return 0;
}

static PyModuleDef_Slot wire_slots[] = {
    {Py_mod_exec, (void *)wire_exec},
    {0, NULL},
};

static struct PyModuleDef wire_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_wire",
    .m_doc = "Ordinary chunks of streamed answers, passed on without a step of Python.",
    .m_size = sizeof(State),
    .m_methods = wire_methods,
    .m_slots = wire_slots,
    .m_traverse = wire_traverse,
    .m_clear = wire_clear,
};

PyMODINIT_FUNC
PyInit__wire(void)
{
    return PyModuleDef_Init(&wire_module);
}
