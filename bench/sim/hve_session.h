/* One SMTP session of the HVE simulator: what its three files share. Private to sim_hve.c,
 * hve_auth.c, hve_data.c.
 *
 *     COMMAND --AUTH--> AUTH_USER -> AUTH_PASSWORD -> COMMAND
 *        |    --AUTH--> AUTH_TOKEN --------------------> COMMAND
 *        |--DATA--> DATA --<CRLF>.<CRLF>--> COMMAND
 *        `--BDAT--> CHUNK ---all bytes----> COMMAND
 *
 * `waiting` stops the input in any state while an answer is held back (slow, latency, hang). */
#ifndef HEAVE_BENCH_SIM_HVE_SESSION_H
#define HEAVE_BENCH_SIM_HVE_SESSION_H

#include "bench/sim/sim.h"
#include "gateway/base/stream.h"

struct hve;

enum hve_state {
    HVE_COMMAND,
    HVE_AUTH_USER,
    HVE_AUTH_PASSWORD,
    HVE_AUTH_TOKEN,
    HVE_DATA,
    HVE_CHUNK,
};

struct hve_session {
    struct hve *hve;
    struct sim *sim;
    struct stream *stream;
    enum hve_state state;
    bool greeted;
    bool said_hello;
    bool waiting;
    bool ending;       /* closed or to be closed: no more input, no more answers */
    char account[256]; /* the identity, as configured; empty until AUTH */
    char auth_user[256];
    int64_t token_expires_ms; /* wall; 0: no token */
    /* the transaction */
    bool in_mail;
    struct buf recipients; /* one after the other; ends[] says where each stops */
    uint32_t *ends;
    size_t recipient_count;
    uint64_t refused_count; /* RCPTs refused in this transaction */
    /* the message */
    struct buf head; /* header, up to the empty line */
    struct buf raw;  /* whole message, for --keep-bodies alone */
    uint64_t message_bytes;
    bool head_done;
    bool at_line_start;
    bool bare_lf;
    uint64_t chunk_left;
    bool chunk_last;
    bool chunk_refused;
    /* an answer held back */
    struct loop_timer timer;
    int64_t delay_ms; /* of the next answer */
    struct buf held;
    bool close_after_held;
    struct hve_session *next; /* all sessions of the simulator */
    struct hve_session *prev;
};

#define HVE_LINE_MAX 12288 /* XOAUTH2 initial responses are long */
#define HVE_HEAD_MAX ((size_t)256 * 1024)

/* Writes one reply line (CR LF is added), later when the session has a delay. Counts nothing. */
void hve_reply(struct hve_session *session, const char *format, ...) PRINTF_LIKE(2, 3);
/* As hve_reply, for a permanent refusal: counts it as rejected. */
void hve_reject(struct hve_session *session, const char *line);
/* Ends the session after what was written has left. */
void hve_end(struct hve_session *session);
/* Drops the transaction: recipients, message. */
void hve_clear(struct hve_session *session);
/* Whether a fault strikes at `phase`; when it does, it has been carried out: answered, delayed,
 * dropped. `true` means the command must not go on; a slow fault only sets the delay and returns
 * false. */
bool hve_fault(struct hve_session *session, enum fault_phase phase, struct span subject);
/* The host name in greetings and texts. */
#define HVE_HOST "smtp.hve.sim"

/* hve_auth.c: AUTH and its continuation lines. */
void hve_auth_command(struct hve_session *session, struct span argument);
void hve_auth_line(struct hve_session *session, struct span line);

/* hve_data.c: the message. Both readers return the bytes used. */
void hve_data_command(struct hve_session *session, struct span argument);
void hve_chunk_command(struct hve_session *session, struct span argument);
size_t hve_data_read(struct hve_session *session, struct span bytes);
size_t hve_chunk_read(struct hve_session *session, struct span bytes);

#endif
