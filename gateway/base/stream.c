#include "gateway/base/stream.h"

#include "gateway/base/dial.h"
#include "gateway/base/failpoint.h"
#include "gateway/base/resolve.h"

#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* What must stay true:
 *  - `io` is an initialised libuv handle from the start to its close callback; that callback, and
 *    nothing else, calls on_close and frees the stream. So every function below may go on using `s`
 *    after a callback, once it has looked at `state` again.
 *  - No user callback runs inside a user's call: what must happen then is left to `events` or
 * `flush`, or to the close callback.
 *  - Output goes plain_tail -> flight, then out -> (TLS) -> flight -> socket. While `writing`,
 * libuv holds a pointer into `flight`, and `flight` is not touched.
 *  - Bytes are read from the socket only while everything read before has been decrypted and shown,
 *    so what a stream keeps is bounded by max_unread_bytes and one read.
 *  - Between user calls, `in` holds plain bytes the user has seen and not used. */

enum state {
    CONNECTING, /* looking up, connecting; or accepted and on_open not yet called */
    SECURING,   /* TLS handshake */
    OPEN,
    FLUSHING,  /* closing: pending output leaves */
    LINGERING, /* closing: our side is shut, the peer's last bytes are thrown away */
    ENDED,     /* the handle closes; on_close comes from its callback */
};

#define CONNECT_TIMEOUT_MS 30000
#define HANDSHAKE_TIMEOUT_MS 30000
#define CLOSE_TIMEOUT_MS 5000
/* How long, and how much, a closing stream listens to a peer that was just sending. Closing a
 * socket with unread bytes sends a reset, and a reset may take our last answer (why we close) from
 * the peer. */
#define LINGER_MS 1000
#define LINGER_MAX_BYTES ((size_t)4 * 1024 * 1024)
#define UNREAD_DEFAULT_BYTES ((size_t)64 * 1024)
#define HIGH_WATER_DEFAULT_BYTES ((size_t)256 * 1024)
#define PENDING_DEFAULT_BYTES ((size_t)64 * 1024 * 1024)
#define OUT_FIRST_BYTES ((size_t)1024)
/* One step of encrypting and of uv_write, so that neither the memory for the second copy nor the
 * time until on_drain grows with the size of a write. */
#define STEP_BYTES ((size_t)256 * 1024)
/* Output behind `out`: memory given to the stream, and what was written after it. */
struct piece {
    struct piece *next;
    struct buf bytes;
};

struct stream {
    struct loop *loop;
    const struct stream_ops *ops;
    void *ctx;
    struct stream_limits limits;
    enum state state;
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } io;
    struct loop_guest guest;
    struct dial *dial;            /* while connecting */
    struct tls_context *dial_tls; /* what follows it: TLS, with this name, until then */
    char *tls_host;
    int64_t connect_due_ms;
    struct tls_engine *tls;
    struct loop_task events; /* on_open, showing kept bytes, handshake steps */
    struct loop_task flush;
    struct loop_timer deadline; /* the user's */
    struct loop_timer guard;    /* ours: connecting, handshake, closing */
    struct buf in;
    struct buf plain_tail;                  /* written before stream_start_tls, not yet in flight */
    struct buf out;                         /* what the user wrote: the first of it, */
    struct piece *first_piece, *last_piece; /* and the rest */
    size_t piece_bytes;
    struct buf flight; /* what goes to the socket as it is */
    uv_write_t write;
    size_t write_bytes; /* of `flight`, given to libuv */
    int64_t last_read_ms;
    size_t lingered_bytes;
    bool writing;
    bool reading;    /* uv_read_start is in force */
    bool paused;     /* by the user */
    bool showing;    /* on_data is on the stack */
    bool drop_in;    /* start_tls was called meanwhile: throw the plain bytes away */
    bool show_kept;  /* events: call on_data with `in` */
    bool above;      /* high water was passed and on_drain is owed */
    bool eof;        /* the peer will send nothing more */
    bool tls_broken; /* no encrypting any more; only the alert leaves */
    bool shut_tls;   /* close_notify was queued */
    bool recorded;   /* status and why are set */
    bool silent;     /* stream_accept failed: no on_close */
    int status;
    char *why;
    char peer[RESOLVE_TEXT_MAX];
    char peer_address[INET6_ADDRSTRLEN];
};

static void drop_pieces(struct stream *s);
static void run_events(void *ctx);
static void flush(void *ctx);
static void on_guard(void *ctx);
static void on_closed(uv_handle_t *handle);
static void update_reading(struct stream *s);

/* ---- Ending ---- */

static void PRINTF_LIKE(3, 4) record(struct stream *s, int status, const char *format, ...)
{
    if (s->recorded) {
        return;
    }
    char text[400];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    s->recorded = true;
    s->status = status;
    s->why = mem_dup(span_of(len >= 0 ? text : ""));
}

/* Closes the handle; on_close follows from its callback. Status and reason have been recorded. */
static void end(struct stream *s)
{
    if (s->state == ENDED) {
        return;
    }
    ASSERT(s->recorded);
    s->state = ENDED;
    loop_timer_stop(&s->deadline);
    loop_timer_stop(&s->guard);
    loop_task_cancel(&s->events);
    loop_task_cancel(&s->flush);
    dial_cancel(&s->dial);
    uv_close(&s->io.handle, on_closed);
}

static void end_io(struct stream *s, const char *what, int uv_error)
{
    record(s, ERR_IO, "%s %s failed: %s.", what, s->peer, uv_strerror(uv_error));
    end(s);
}

/* The end of every stream. */
static void on_closed(uv_handle_t *handle)
{
    struct stream *s = handle->data;
    loop_guest_leave(&s->guest);
    if (!s->silent) {
        s->ops->on_close(s->ctx, s->status, s->why);
    }
    ASSERT(!s->writing);
    tls_engine_free(&s->tls);
    tls_context_unref(&s->dial_tls);
    mem_free(s->tls_host);
    buf_release(&s->in);
    buf_release(&s->plain_tail);
    buf_release(&s->out);
    drop_pieces(s);
    buf_release(&s->flight);
    mem_free(s->why);
    mem_free(s);
}

static void schedule_flush(struct stream *s)
{
    if (s->state != CONNECTING && s->state != ENDED && !s->writing) {
        enum loop_task_class when = s->limits.writes_first ? LOOP_TASK_QUEUE : LOOP_TASK_WRITE;
        loop_defer(s->loop, &s->flush, when, flush, s);
    }
}

static void schedule_events(struct stream *s)
{
    if (s->state != ENDED) {
        loop_defer(s->loop, &s->events, LOOP_TASK_QUEUE, run_events, s);
    }
}

/* Starts closing in good order: what is pending leaves first. The end has been recorded. */
static void begin_flushing(struct stream *s)
{
    ASSERT(s->recorded && s->state < FLUSHING);
    s->state = FLUSHING;
    loop_timer_stop(&s->deadline);
    loop_task_cancel(&s->events);
    update_reading(s);
    loop_timer_start(s->loop, &s->guard, CLOSE_TIMEOUT_MS, on_guard, s);
    schedule_flush(s);
}

/* The TLS engine gave up. Its alert should still reach the peer; nothing the user wrote may, since
 * there is no key to encrypt it with. */
static void tls_failed(struct stream *s, int status, const char *why)
{
    record(s, status, "%s", why);
    s->tls_broken = true;
    buf_release(&s->out);
    drop_pieces(s);
    if (s->state < FLUSHING) {
        begin_flushing(s);
    }
}

static void evict(struct loop_guest *guest)
{
    struct stream *s = (struct stream *)((char *)guest - offsetof(struct stream, guest));
    record(s, ERR_OK, "The loop of the stream ended.");
    end(s);
}

/* ---- Output ---- */

/* The first piece takes the place of `out`, which is empty and without memory. */
static void piece_shift(struct stream *s)
{
    struct piece *piece = s->first_piece;
    if (piece == NULL) {
        return;
    }
    ASSERT(s->out.data == NULL);
    s->first_piece = piece->next;
    s->last_piece = piece->next != NULL ? s->last_piece : NULL;
    s->piece_bytes -= buf_len(&piece->bytes);
    s->out = piece->bytes;
    mem_free(piece);
}

static void drop_pieces(struct stream *s)
{
    while (s->first_piece != NULL) {
        piece_shift(s);
        buf_release(&s->out);
    }
}

/* Lets bytes into the empty `flight`; `flight` stays empty when there are none. */
static int refill(struct stream *s)
{
    buf_release(&s->flight);
    if (buf_len(&s->plain_tail) > 0) {
        s->flight = s->plain_tail;
        buf_init(&s->plain_tail, s->flight.max);
        return ERR_OK;
    }
    if (s->tls == NULL) {
        struct buf empty = s->flight;
        s->flight = s->out;
        s->out = empty;
        piece_shift(s);
        return ERR_OK;
    }
    bool may_encrypt = s->state != SECURING && !s->tls_broken;
    if (may_encrypt && buf_len(&s->out) > 0) {
        struct span plain = buf_span(&s->out);
        plain.len = plain.len < STEP_BYTES ? plain.len : STEP_BYTES;
        int rc = tls_engine_write(s->tls, plain);
        if (rc != ERR_OK) {
            tls_failed(s, rc == ERR_NOMEM ? ERR_IO : ERR_PROTO, "Encrypting the output failed.");
            return tls_engine_drain(s->tls, &s->flight);
        }
        buf_consume(&s->out, plain.len);
    }
    if (buf_len(&s->out) == 0) {
        buf_release(&s->out);
        piece_shift(s);
    }
    bool all = buf_len(&s->out) == 0;
    if (all && s->state == FLUSHING && may_encrypt && !s->shut_tls) {
        s->shut_tls = true;
        tls_engine_shutdown(s->tls);
    }
    return tls_engine_drain(s->tls, &s->flight);
}

static void on_written(uv_write_t *request, int status)
{
    struct stream *s = request->data;
    s->writing = false;
    if (s->state == ENDED) {
        return;
    }
    if (status < 0) {
        end_io(s, "Writing to", status);
        return;
    }
    buf_consume(&s->flight, s->write_bytes);
    schedule_flush(s);
}

/* Gives `flight` to the socket: what it takes at once, then one step through libuv. False when the
 * stream ended over it. */
static bool send_flight(struct stream *s)
{
    uv_buf_t piece = {.base = s->flight.data + s->flight.start, .len = buf_len(&s->flight)};
    int taken = uv_try_write(&s->io.stream, &piece, 1);
    if (taken == UV_EAGAIN) {
        taken = 0;
    }
    if (taken < 0) {
        end_io(s, "Writing to", taken);
        return false;
    }
    buf_consume(&s->flight, (size_t)taken);
    size_t left = buf_len(&s->flight);
    if (left == 0) {
        return true;
    }
    s->write_bytes = left < STEP_BYTES ? left : STEP_BYTES;
    piece.base = s->flight.data + s->flight.start;
    piece.len = s->write_bytes;
    s->write.data = s;
    int rc = uv_write(&s->write, &s->io.stream, &piece, 1, on_written);
    if (rc != 0) {
        end_io(s, "Writing to", rc);
        return false;
    }
    s->writing = true;
    return true;
}

static void tell_drained(struct stream *s)
{
    if (s->above && stream_pending_bytes(s) < s->limits.high_water_bytes / 4) {
        s->above = false;
        if (s->state == OPEN && s->ops->on_drain != NULL) {
            s->ops->on_drain(s->ctx);
        }
    }
}

/* Whether the peer may have bytes under way that nobody will read. */
static bool should_linger(const struct stream *s, int fd)
{
    if (s->eof) {
        return false;
    }
    int waiting = 0;
    bool unread = ioctl(fd, FIONREAD, &waiting) == 0 && waiting > 0;
    return unread || buf_len(&s->in) > 0 || loop_now_ms(s->loop) - s->last_read_ms < LINGER_MS;
}

/* All output of a closing stream is with the kernel. */
static void flushed(struct stream *s)
{
    int fd = -1;
    if (uv_fileno(&s->io.handle, &fd) != 0 || !should_linger(s, fd) || shutdown(fd, SHUT_WR) != 0) {
        end(s);
        return;
    }
    s->state = LINGERING;
    loop_timer_start(s->loop, &s->guard, LINGER_MS, on_guard, s);
    update_reading(s);
}

/* The end of a turn, or of a write: brings everything pending to the socket. */
static void flush(void *ctx)
{
    struct stream *s = ctx;
    if (s->writing || s->state == CONNECTING || s->state >= LINGERING) {
        return;
    }
    while (!s->writing) {
        if (buf_len(&s->flight) == 0 && refill(s) != ERR_OK) {
            record(s, ERR_IO, "There is no memory for the output to %s.", s->peer);
            end(s);
            return;
        }
        if (buf_len(&s->flight) == 0) {
            break;
        }
        if (!send_flight(s)) {
            return;
        }
        FAILPOINT("stream-written");
    }
    tell_drained(s);
    if (s->state == FLUSHING && !s->writing) {
        flushed(s);
    }
}

static int may_write(const struct stream *s, size_t more)
{
    if (s->state >= FLUSHING) {
        return ERR_CLOSED;
    }
    size_t pending = stream_pending_bytes(s);
    bool fits = pending <= s->limits.max_pending_bytes &&
                more <= s->limits.max_pending_bytes - pending;
    return fits ? ERR_OK : ERR_LIMIT;
}

static void written(struct stream *s)
{
    if (stream_pending_bytes(s) > s->limits.high_water_bytes) {
        s->above = true;
    }
    schedule_flush(s);
}

int stream_give(struct stream *s, struct buf *bytes)
{
    int rc = may_write(s, buf_len(bytes));
    if (rc != ERR_OK || buf_len(bytes) == 0) {
        return rc;
    }
    struct piece *piece = mem_zero(sizeof(*piece));
    piece->bytes = *bytes;
    piece->bytes.max = s->out.max;
    s->piece_bytes += buf_len(bytes);
    buf_init(bytes, bytes->max);
    *(s->last_piece != NULL ? &s->last_piece->next : &s->first_piece) = piece;
    s->last_piece = piece;
    if (buf_len(&s->out) == 0) {
        buf_release(&s->out);
        piece_shift(s);
    }
    written(s);
    return ERR_OK;
}

int stream_write(struct stream *s, struct span bytes)
{
    int rc = may_write(s, bytes.len);
    if (rc != ERR_OK || bytes.len == 0) {
        return rc;
    }
    struct buf *last = s->last_piece != NULL ? &s->last_piece->bytes : &s->out;
    /* Replies come in small pieces; the first piece makes room for those that follow. */
    if (last->data == NULL && bytes.len < OUT_FIRST_BYTES) {
        char *room = NULL;
        rc = buf_reserve(last, OUT_FIRST_BYTES, &room);
    }
    rc = rc == ERR_OK ? buf_append(last, bytes) : rc;
    if (rc == ERR_OK) {
        s->piece_bytes += s->last_piece != NULL ? bytes.len : 0;
        written(s);
    }
    return rc;
}

size_t stream_pending_bytes(const struct stream *s)
{
    return buf_len(&s->plain_tail) + buf_len(&s->out) + s->piece_bytes + buf_len(&s->flight);
}

bool stream_above_high_water(const struct stream *s)
{
    return s->above;
}

/* ---- Input ---- */

static bool is_full(const struct stream *s)
{
    return buf_len(&s->in) >= s->limits.max_unread_bytes;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *out)
{
    (void)suggested;
    struct stream *s = handle->data;
    size_t room = LOOP_ROOM_BYTES;
    if (s->state == OPEN && s->tls == NULL) {
        size_t left = s->limits.max_unread_bytes - buf_len(&s->in);
        room = left < room ? left : room;
    }
    *out = uv_buf_init(loop_room(s->loop), (unsigned)room);
}

/* Calls on_data. Returns how many of the bytes are done with: used, or thrown away. */
static size_t show(struct stream *s, struct span bytes)
{
    s->showing = true;
    size_t used = s->ops->on_data(s->ctx, bytes);
    s->showing = false;
    ASSERT(used <= bytes.len);
    if (s->drop_in) {
        s->drop_in = false;
        return bytes.len;
    }
    return used;
}

static void show_kept(struct stream *s)
{
    s->show_kept = false;
    size_t done = show(s, buf_span(&s->in));
    buf_consume(&s->in, done);
    if (buf_len(&s->in) == 0) {
        buf_release(&s->in);
    }
}

/* Plain bytes that stand in the loop's room. */
static void take_fresh(struct stream *s, struct span bytes)
{
    bool shown_before = buf_len(&s->in) > 0;
    if (!shown_before) {
        size_t done = show(s, bytes);
        bytes.data += done;
        bytes.len -= done;
    }
    if (s->state == OPEN && bytes.len > 0 && buf_append(&s->in, bytes) != ERR_OK) {
        record(s, ERR_IO, "There is no memory for the input from %s.", s->peer);
        end(s);
        return;
    }
    if (shown_before) {
        show_kept(s);
    }
}

static void on_read(uv_stream_t *handle, ssize_t count, const uv_buf_t *room);

/* Reads from the socket exactly while somebody can take the bytes. */
static void update_reading(struct stream *s)
{
    bool open = s->state == OPEN && !s->paused && !is_full(s);
    bool want = !s->eof && (open || s->state == SECURING || s->state == LINGERING);
    if (want == s->reading || s->state == ENDED) {
        return;
    }
    s->reading = want;
    int rc = want ? uv_read_start(&s->io.stream, on_alloc, on_read) : uv_read_stop(&s->io.stream);
    if (rc != 0) {
        end_io(s, "Reading from", rc);
    }
}

static void on_end_of_file(struct stream *s, const char *why)
{
    s->eof = true;
    switch (s->state) {
    case OPEN:
        record(s, ERR_CLOSED, "%s", why);
        begin_flushing(s);
        break;
    case CONNECTING:
    case SECURING:
        record(s, ERR_CLOSED, "%s closed the connection during the TLS handshake.", s->peer);
        end(s);
        break;
    case FLUSHING:
        update_reading(s);
        break;
    case LINGERING:
        end(s);
        break;
    case ENDED:
        break;
    }
}

static void become_open(struct stream *s)
{
    s->state = OPEN;
    loop_timer_stop(&s->guard);
    schedule_flush(s);
    s->ops->on_open(s->ctx);
}

/* Decrypts into `room` until it is full, nothing is left, or the engine says the stream is at its
 * end. Returns 0 or ERR_CLOSED or ERR_PROTO; bytes decrypted before count in any case. */
static int decrypt(struct stream *s, char *room, size_t size, size_t *out_count)
{
    size_t count = 0;
    int rc = 0;
    while (count < size) {
        rc = tls_engine_read(s->tls, room + count, size - count);
        if (rc <= 0) {
            break;
        }
        count += (size_t)rc;
    }
    *out_count = count;
    return rc < 0 ? rc : ERR_OK;
}

/* One portion from the engine to the user. STEP_DONE: there may be more; STEP_WAIT: not now. */
static int pump_portion(struct stream *s)
{
    size_t size = s->limits.max_unread_bytes - buf_len(&s->in);
    size = size < LOOP_ROOM_BYTES ? size : LOOP_ROOM_BYTES;
    size_t count = 0;
    int rc = decrypt(s, loop_room(s->loop), size, &count);
    if (count > 0) {
        /* The bytes first; what ended the stream comes up again with the next portion. */
        take_fresh(s, span_make(loop_room(s->loop), count));
        return STEP_DONE;
    }
    if (rc == ERR_CLOSED) {
        on_end_of_file(s, "The peer closed the connection.");
    } else if (rc != ERR_OK) {
        tls_failed(s, rc, "The peer sent a broken TLS record.");
    }
    return STEP_WAIT;
}

/* Takes the engine as far as it goes: handshake, then plain bytes, as long as the user takes them.
 */
static void pump(struct stream *s)
{
    for (bool more = true; more;) {
        if (s->state == SECURING) {
            struct err err;
            int rc = tls_engine_handshake(s->tls, &err);
            if (rc == STEP_DONE) {
                become_open(s);
            } else if (rc < 0) {
                tls_failed(s, rc, err.text);
            }
            more = rc == STEP_DONE;
        } else {
            more = s->state == OPEN && !s->paused && !is_full(s) && pump_portion(s) == STEP_DONE;
        }
    }
    schedule_flush(s);
    update_reading(s);
}

static void on_read(uv_stream_t *handle, ssize_t count, const uv_buf_t *room)
{
    struct stream *s = handle->data;
    if (count == 0 || s->state == ENDED) {
        return;
    }
    if (count == UV_EOF) {
        on_end_of_file(s, s->tls == NULL ? "The peer closed the connection."
                                         : "The peer closed the connection without ending TLS.");
        return;
    }
    if (count < 0) {
        end_io(s, "Reading from", (int)count);
        return;
    }
    s->last_read_ms = loop_now_ms(s->loop);
    struct span bytes = {.data = room->base, .len = (size_t)count};
    if (s->state == LINGERING) {
        s->lingered_bytes += bytes.len;
        if (s->lingered_bytes > LINGER_MAX_BYTES) {
            end(s);
        }
        return;
    }
    if (s->tls == NULL) {
        take_fresh(s, bytes);
        update_reading(s);
        return;
    }
    if (tls_engine_feed(s->tls, bytes) != ERR_OK) {
        record(s, ERR_IO, "There is no memory for the input from %s.", s->peer);
        end(s);
        return;
    }
    pump(s);
}

void stream_pause(struct stream *s)
{
    s->paused = true;
    update_reading(s);
}

void stream_resume(struct stream *s)
{
    s->paused = false;
    s->show_kept = true;
    schedule_events(s);
}

/* ---- TLS ---- */

/* From here on the bytes of the socket are TLS. */
static int secure(struct stream *s, struct tls_context *tls, const char *host, int64_t timeout_ms)
{
    int rc = tls_engine_new(tls, host, &s->tls);
    if (rc != ERR_OK) {
        return rc;
    }
    s->state = SECURING;
    loop_timer_start(s->loop, &s->guard, timeout_ms, on_guard, s);
    schedule_events(s);
    return ERR_OK;
}

int stream_start_tls(struct stream *s, struct tls_context *tls, const char *host)
{
    ASSERT(s->tls == NULL);
    if (s->state != OPEN) {
        return ERR_CLOSED;
    }
    int rc = secure(s, tls, host, HANDSHAKE_TIMEOUT_MS);
    if (rc != ERR_OK) {
        return rc;
    }
    ASSERT(s->first_piece == NULL);
    /* What was written so far goes out as it is; `plain_tail` is free, since only this fills it. */
    struct buf empty = s->plain_tail;
    s->plain_tail = s->out;
    s->out = empty;
    schedule_flush(s);
    /* Bytes a third party put behind the command that starts TLS must not be taken for bytes that
     * came under its protection. */
    if (s->showing) {
        s->drop_in = true;
    } else {
        buf_release(&s->in);
    }
    return ERR_OK;
}

/* ---- Connecting ---- */

static void name_peer(struct stream *s)
{
    union resolve_address address = {.v6 = {.sin6_family = AF_UNSPEC}};
    int size = (int)sizeof(address);
    if (s->io.handle.type == UV_TCP && uv_tcp_getpeername(&s->io.tcp, &address.any, &size) == 0) {
        resolve_text(&address, s->peer, s->peer_address);
        return;
    }
    /* A TCP peer without a name is gone already; reading will say so. */
    const char *name = s->io.handle.type == UV_TCP ? "unknown" : "unix";
    (void)snprintf(s->peer, sizeof(s->peer), "%s", name);
    (void)snprintf(s->peer_address, sizeof(s->peer_address), "%s", name);
}

static void open_handle(struct stream *s, bool tcp)
{
    if (tcp) {
        ASSERT(uv_tcp_init(loop_uv(s->loop), &s->io.tcp) == 0);
    } else {
        ASSERT(uv_pipe_init(loop_uv(s->loop), &s->io.pipe, 0) == 0);
    }
    s->io.handle.data = s;
}

static void start_tls_of_target(struct stream *s)
{
    int64_t left_ms = s->connect_due_ms - loop_now_ms(s->loop);
    int rc = secure(s, s->dial_tls, s->tls_host, left_ms > 0 ? left_ms : 0);
    if (rc != ERR_OK) {
        record(s, ERR_IO, "TLS with %s cannot be started: %s.", s->tls_host,
               rc == ERR_INVAL ? "no certificate can carry this name" : "there is no memory");
        end(s);
    }
}

static void on_dialled(void *ctx, int status, int fd, const char *why)
{
    struct stream *s = ctx;
    s->dial = NULL;
    if (status != ERR_OK) {
        record(s, status, "%s", why);
        end(s);
        return;
    }
    bool tcp = s->io.handle.type == UV_TCP;
    int rc = tcp ? uv_tcp_open(&s->io.tcp, fd) : uv_pipe_open(&s->io.pipe, fd);
    if (rc != 0) {
        (void)close(fd); /* never used: nothing can be lost */
        end_io(s, "Connecting to", rc);
        return;
    }
    if (tcp) {
        /* For speed, and for noticing a peer that vanished; a kernel without them serves too. */
        (void)uv_tcp_nodelay(&s->io.tcp, 1);
        (void)uv_tcp_keepalive(&s->io.tcp, 1, 60);
    }
    name_peer(s);
    if (s->dial_tls != NULL) {
        start_tls_of_target(s);
        return;
    }
    become_open(s);
    update_reading(s);
}

/* ---- Events and timers ---- */

/* What user calls left to be done outside of them. */
static void run_events(void *ctx)
{
    struct stream *s = ctx;
    if (s->dial != NULL) {
        return; /* on_dialled goes on from there */
    }
    if (s->state == CONNECTING) {
        become_open(s);
    }
    bool kept = s->state == OPEN && !s->paused && buf_len(&s->in) > 0;
    if (kept && s->show_kept) {
        show_kept(s);
    }
    if (s->tls != NULL && s->state < FLUSHING) {
        pump(s);
    } else {
        update_reading(s);
    }
}

static void on_guard(void *ctx)
{
    struct stream *s = ctx;
    record(s, ERR_TIMEOUT, "The TLS handshake with %s took too long.", s->peer);
    end(s);
}

static void on_deadline(void *ctx)
{
    struct stream *s = ctx;
    if (s->ops->on_deadline != NULL) {
        s->ops->on_deadline(s->ctx);
        return;
    }
    record(s, ERR_TIMEOUT, "The deadline of the connection with %s passed.", s->peer);
    end(s);
}

void stream_deadline(struct stream *s, int64_t delay_ms)
{
    if (delay_ms <= 0 || s->state >= FLUSHING) {
        loop_timer_stop(&s->deadline);
        return;
    }
    loop_timer_start(s->loop, &s->deadline, delay_ms, on_deadline, s);
}

/* ---- Life ---- */

static struct stream *stream_make(struct loop *loop, const struct stream_ops *ops, void *ctx,
                                  const struct stream_limits *limits)
{
    ASSERT(ops->on_open != NULL && ops->on_data != NULL && ops->on_close != NULL);
    struct stream *s = mem_zero(sizeof(*s));
    s->loop = loop;
    s->ops = ops;
    s->ctx = ctx;
    s->limits = limits != NULL ? *limits : (struct stream_limits){.max_unread_bytes = 0};
    if (s->limits.max_unread_bytes == 0) {
        s->limits.max_unread_bytes = UNREAD_DEFAULT_BYTES;
    }
    if (s->limits.high_water_bytes == 0) {
        s->limits.high_water_bytes = HIGH_WATER_DEFAULT_BYTES;
    }
    if (s->limits.max_pending_bytes == 0) {
        s->limits.max_pending_bytes = PENDING_DEFAULT_BYTES;
    }
    buf_init(&s->in, s->limits.max_unread_bytes);
    /* stream_write() keeps the limit; the slack is for what TLS adds to one step. */
    size_t most = s->limits.max_pending_bytes + 2 * STEP_BYTES;
    buf_init(&s->plain_tail, most);
    buf_init(&s->out, most);
    buf_init(&s->flight, most);
    s->last_read_ms = loop_now_ms(loop) - LINGER_MS;
    loop_guest_join(loop, &s->guest, evict);
    return s;
}

int stream_accept(struct loop *loop, uv_stream_t *listener, struct tls_context *tls,
                  const struct stream_ops *ops, void *ctx, const struct stream_limits *limits,
                  struct stream **out)
{
    struct stream *s = stream_make(loop, ops, ctx, limits);
    open_handle(s, listener->type == UV_TCP);
    int rc = uv_accept(listener, &s->io.stream);
    if (rc == 0 && tls != NULL) {
        rc = secure(s, tls, NULL, HANDSHAKE_TIMEOUT_MS);
    }
    if (rc != 0) {
        s->silent = true;
        record(s, ERR_IO, "The connection cannot be accepted.");
        end(s);
        return ERR_IO;
    }
    if (listener->type == UV_TCP) {
        (void)uv_tcp_nodelay(&s->io.tcp, 1); /* only for speed */
    }
    name_peer(s);
    schedule_events(s);
    *out = s;
    return ERR_OK;
}

static bool target_valid(const struct stream_target *target)
{
    if (target->host == NULL || target->host[0] == '\0' || target->connect_timeout_ms < 0) {
        return false;
    }
    /* libuv would cut a longer path, and connect to another socket. */
    return target->port != 0 ||
           (target->host[0] == '/' &&
            strlen(target->host) < sizeof(((struct sockaddr_un *)0)->sun_path));
}

int stream_connect(struct loop *loop, const struct stream_target *target,
                   const struct stream_ops *ops, void *ctx, const struct stream_limits *limits,
                   struct stream **out)
{
    if (!target_valid(target)) {
        return ERR_INVAL;
    }
    struct stream *s = stream_make(loop, ops, ctx, limits);
    int64_t timeout_ms = target->connect_timeout_ms > 0 ? target->connect_timeout_ms
                                                        : CONNECT_TIMEOUT_MS;
    const char *tls_host = target->tls_host != NULL ? target->tls_host : target->host;
    s->tls_host = mem_dup(span_of(tls_host));
    s->dial_tls = target->tls != NULL ? tls_context_ref(target->tls) : NULL;
    s->connect_due_ms = loop_now_ms(loop) + timeout_ms;
    s->dial = dial_start(loop, target->host, target->port, s->connect_due_ms, on_dialled, s);
    if (target->port != 0) {
        (void)snprintf(s->peer, sizeof(s->peer), "%.50s:%u", target->host, (unsigned)target->port);
    } else {
        (void)snprintf(s->peer, sizeof(s->peer), "unix");
    }
    open_handle(s, target->port != 0);
    *out = s;
    return ERR_OK;
}

void stream_set_user(struct stream *s, const struct stream_ops *ops, void *ctx)
{
    ASSERT(ops->on_open != NULL && ops->on_data != NULL && ops->on_close != NULL);
    s->ops = ops;
    s->ctx = ctx;
    /* What the old user left is the new one's. */
    s->show_kept = true;
    schedule_events(s);
}

void stream_close(struct stream *s)
{
    if (s->state >= FLUSHING) {
        return;
    }
    record(s, ERR_OK, "Closed by this side.");
    bool accepted = s->state == CONNECTING && s->dial == NULL;
    if (s->state == OPEN || accepted) {
        begin_flushing(s);
    } else {
        end(s);
    }
}

void stream_abort(struct stream *s)
{
    record(s, ERR_OK, "Closed by this side.");
    end(s);
}

const char *stream_peer(const struct stream *s)
{
    return s->peer;
}

const char *stream_peer_address(const struct stream *s)
{
    return s->peer_address;
}

bool stream_is_tls(const struct stream *s)
{
    return s->tls != NULL;
}

const char *stream_tls_version(const struct stream *s)
{
    return s->tls != NULL ? tls_engine_version(s->tls) : "";
}

const char *stream_tls_cipher(const struct stream *s)
{
    return s->tls != NULL ? tls_engine_cipher(s->tls) : "";
}

const char *stream_alpn(const struct stream *s)
{
    return s->tls != NULL ? tls_engine_alpn(s->tls) : "";
}

const char *stream_tls_peer_subject(const struct stream *s)
{
    return s->tls != NULL ? tls_engine_peer_subject(s->tls) : "";
}
