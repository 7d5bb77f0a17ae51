/* The inside of the SMTP machine, for smtp.c (lines, table of verbs, answers), smtp_mail.c (the
 * mail transaction), smtp_auth.c (AUTH), smtp_data.c (the message) and smtp_parse.c (syntax) alone.
 *
 * A verb answers by itself, or asks by setting `asked`; nothing is taken from the peer until
 * smtp_answer() has cleared it. */
#ifndef HEAVE_GATEWAY_SMTP_MACHINE_H
#define HEAVE_GATEWAY_SMTP_MACHINE_H

#include "gateway/smtp.h"

/* ---- smtp_parse.c ---- */

/* Takes a path off the front of `*args`: "<user@host>", "<@relay:user@host>", "<>", or, for old
 * devices, "user@host". Leaves the parameters. Errors: ERR_INVAL. */
MUST_USE int smtp_take_path(struct span *args, struct span *out_address);

/* One parameter "KEY=VALUE" or "KEY". */
struct smtp_parameter {
    struct span key;
    struct span value;
    bool has_value;
};
/* Takes the next parameter off `*args`; false when none is left. */
bool smtp_take_parameter(struct span *args, struct smtp_parameter *out);

/* What MAIL can say besides the path. */
struct smtp_mail_parameters {
    uint64_t size_bytes;
    bool body_8bit;
    bool smtputf8;
};
/* Reads all parameters of MAIL. Errors: ERR_INVAL (bad value, or named twice), ERR_UNSUPPORTED
 * (unknown parameter). */
MUST_USE int smtp_parse_mail(struct span args, struct smtp_mail_parameters *out);

/* ---- smtp_data.c ---- */

/* Where in a line the next byte stands. */
enum smtp_place {
    SMTP_PLACE_START, /* after a real CR LF (or the one of DATA) */
    SMTP_PLACE_SOFT,  /* after a repaired line end */
    SMTP_PLACE_INSIDE,
};

/* Rising gravity: what the peer must mend stands above what may pass by itself, so that which reply
 * a message with several defects gets does not hang on how it was cut on the way. */
enum smtp_defect {
    SMTP_DEFECT_NONE,
    SMTP_DEFECT_OWNER, /* smtp_refuse_data() */
    SMTP_DEFECT_NO_MEMORY,
    SMTP_DEFECT_TOO_LARGE,
    SMTP_DEFECT_NUL,
    SMTP_DEFECT_LINE_END, /* bare CR or LF, strict */
};

/* The reader of one message. The gravest defect stays; after the first nothing is kept, only the
 * end is looked for. */
struct smtp_data {
    struct buf body;
    bool repair;
    enum smtp_place place;
    enum smtp_defect defect;
    uint64_t received_bytes;
    char tail[4]; /* the last bytes taken */
};
void smtp_data_init(struct smtp_data *data, size_t max_bytes, uint64_t declared_bytes, bool repair);
void smtp_data_release(struct smtp_data *data);
/* Takes bytes; returns how many, and whether the end of data was among them (the rest is what
 * follows it). Bytes whose meaning hangs on the next one (at most two) are left. */
size_t smtp_data_take(struct smtp_data *data, struct span bytes, bool *out_end);
void smtp_data_spoil(struct smtp_data *data, enum smtp_defect defect);
/* Whether what was taken ends like the end of data of a sloppy peer. */
bool smtp_data_looks_ended(const struct smtp_data *data);

/* ---- The machine ---- */

enum smtp_state {
    STATE_COMMAND,
    STATE_AUTH_PLAIN,    /* the response comes on its own line */
    STATE_AUTH_USER,     /* LOGIN asked for the user */
    STATE_AUTH_PASSWORD, /* LOGIN asked for the password */
    STATE_DATA,
};

struct smtp {
    const struct smtp_conf *conf;
    enum smtp_state state;
    enum smtp_event asked;
    size_t searched; /* bytes of the unfinished line in which no LF was found */
    bool overlong;   /* the line at hand is too long; its rest is dropped */
    bool tls;
    bool greeted;  /* EHLO or HELO was said */
    bool extended; /* it was EHLO */
    bool authenticated;
    bool in_transaction; /* MAIL was accepted */
    bool mail_refused;   /* what is pipelined behind a refused MAIL is no error of the peer */
    bool mail_put_off;   /* it was refused for now: what follows hears the same, never a 5xx */
    uint32_t errors;
    uint32_t idle_commands;
    size_t recipients_refused;
    size_t recipient_room;
    char *helo;
    const char *end;
    struct smtp_transaction transaction;
    struct arena arena; /* the transaction's addresses */
    struct smtp_data data;
    struct smtp_reply data_refusal; /* SMTP_DEFECT_OWNER; text is static */
    struct smtp_credentials credentials;
    struct buf user;     /* credentials.user */
    struct buf password; /* credentials.password */
    struct smtp_counts counts;
};

#define SMTP_REPLY_TEXT_MAX 400

/* One whole reply with its CR LF. */
void smtp_reply(struct smtp *m, struct buf *out, struct span lines);
/* One of the owner's words, made printable and cut. */
void smtp_reply_words(struct smtp *m, struct buf *out, unsigned code, const char *enhanced,
                      struct span text);
/* A 421, which names the host (RFC 5321 4.2.3), and the end. */
void smtp_reply_closing(struct smtp *m, struct buf *out, const char *enhanced, const char *text,
                        const char *end);
/* An error of the peer: answered, counted, and one too many ends the session. */
void smtp_complain(struct smtp *m, struct buf *out, struct span lines);
void smtp_close(struct smtp *m, const char *end);
#define REPLY(m, out, literal) smtp_reply(m, out, SPAN_LIT(literal "\r\n"))
#define COMPLAIN(m, out, literal) smtp_complain(m, out, SPAN_LIT(literal "\r\n"))

/* ---- smtp_mail.c ---- */

void smtp_do_mail(struct smtp *m, struct span args, struct buf *out);
void smtp_do_rcpt(struct smtp *m, struct span args, struct buf *out);
void smtp_do_data(struct smtp *m, struct span args, struct buf *out);
void smtp_answer_mail(struct smtp *m, bool yes, struct buf *out);
void smtp_answer_rcpt(struct smtp *m, bool yes, struct buf *out);
/* `worded`: the owner's reply is in `out` already. */
void smtp_answer_message(struct smtp *m, bool yes, bool worded, struct buf *out);
void smtp_begin_data(struct smtp *m, struct buf *out);
/* False: more bytes are needed. */
bool smtp_advance_data(struct smtp *m, struct span *bytes, struct buf *out);
/* The reply for the message's defect; there must be one. */
void smtp_reply_defect(struct smtp *m, struct buf *out);
void smtp_end_transaction(struct smtp *m);

/* ---- smtp_auth.c ---- */

bool smtp_auth_usable(const struct smtp *m);
void smtp_do_auth(struct smtp *m, struct span args, struct buf *out);
/* A line of the exchange that is open. */
void smtp_take_auth_line(struct smtp *m, struct span line, struct buf *out);
void smtp_answer_auth(struct smtp *m, bool yes, bool worded, struct buf *out);
void smtp_forget_credentials(struct smtp *m);

#endif
