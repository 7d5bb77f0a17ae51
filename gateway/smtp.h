/* The SMTP server as a pure machine: bytes in, events and reply bytes out.
 *
 * Speaks RFC 5321 with PIPELINING (2920), SIZE (1870), 8BITMIME (6152), SMTPUTF8 (6531),
 * ENHANCEDSTATUSCODES (2034, codes of 3463), STARTTLS (3207) and AUTH PLAIN and LOGIN (4954, 4616).
 *
 * Must not know: sockets, clocks, logs, clients, intake. It checks syntax, sequence and size and
 * asks its owner, by an event, about everything that is policy. Thread: any; a machine belongs to
 * one at a time.
 *
 * How it is driven:
 *
 *     smtp_greet(m, out);
 *     again:
 *     switch (smtp_advance(m, &bytes, out)) {     // takes what it uses off the front of `bytes`
 *     case SMTP_EVENT_MORE:  // wants more; what is left in `bytes` must be shown again, followed
 * by new bytes case SMTP_EVENT_MAIL:  // a question: smtp_answer(m, NULL or a refusal, out), now or
 * later; then `again`
 *     ...
 *
 * A machine that has asked takes no bytes until it is answered, so that what a peer pipelines after
 * the final dot waits for the verdict while everything before it was answered already. Replies are
 * appended to `out` in order; the owner sends them together when smtp_advance() returns.
 *
 * The machine keeps no unfinished line: the owner's stream keeps it. So an idle session holds no
 * buffer here. At most SMTP_KEEP_BYTES are ever left in `bytes`.
 *
 * Line ends (SMTP smuggling): the end of data is <CR><LF>.<CR><LF> and nothing else, in both modes.
 * Strict: a bare CR or LF inside data refuses the message (550 5.6.11) after its real end, inside a
 * command it is 500 5.5.2. Repair: in data each becomes <CR><LF> (a run of CRs before an LF is one
 * line end), a bare LF ends a command, and a line after a repaired line end loses one leading dot
 * only when two stand there; a "." alone there is text. A NUL refuses the message (554 5.6.0) in
 * both modes.
 *
 * Tolerated, because old devices do it: a space after "FROM:" and "TO:", addresses without angle
 * brackets, source routes (dropped), MAIL parameters after HELO. */
#ifndef HEAVE_GATEWAY_SMTP_H
#define HEAVE_GATEWAY_SMTP_H

#include "gateway/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Longest command line with its CR LF: RFC 5321 4.5.3.1.4 has 512, the parameters of MAIL add 553
 * (SIZE 26, BODY 17, SMTPUTF8 10, AUTH 500), UTF-8 addresses the rest. */
#define SMTP_LINE_MAX ((size_t)2048)
/* RFC 4954 section 4: lines of an AUTH exchange. */
#define SMTP_AUTH_LINE_MAX ((size_t)12288)
#define SMTP_KEEP_BYTES SMTP_AUTH_LINE_MAX
/* The most one call of smtp_advance() appends to `out` is bounded by its input; a buf of this
 * maximum is enough for input of 64 KiB. */
#define SMTP_OUT_MAX ((size_t)1 << 20)

/* Must outlive the machines made with it. */
struct smtp_conf {
    const char *hostname;
    bool offer_starttls;
    bool offer_auth;
    bool auth_without_tls; /* AUTH on a plain connection too */
    bool repair_line_endings;
    size_t max_message_bytes;
    size_t max_recipients; /* of one message; more get 452 4.5.3 */
    uint32_t max_errors;   /* syntax and sequence errors, and wrong passwords, until 421 4.7.0 */
    uint32_t max_idle_commands; /* commands since the last accepted message until 421 4.7.0;
                                 * recipients, and what led to an accepted message, do not count */
};

enum smtp_event {
    SMTP_EVENT_MORE,     /* no question */
    SMTP_EVENT_MAIL,     /* may smtp_transaction()->reverse_path send? */
    SMTP_EVENT_RCPT,     /* may smtp_transaction()->candidate be sent to? */
    SMTP_EVENT_DATA,     /* may the message come? */
    SMTP_EVENT_MESSAGE,  /* smtp_transaction() is complete: what became of it? */
    SMTP_EVENT_AUTH,     /* are smtp_credentials() right? */
    SMTP_EVENT_STARTTLS, /* 220 is in `out`: send it, start TLS, then smtp_tls_started(); bytes left
                          * over were sent in plain text and must be thrown away */
    SMTP_EVENT_CLOSE,    /* send `out` and close; the machine takes nothing any more */
};

/* The mail transaction at hand. Spans live until it is over: answered MESSAGE, refused MAIL, RSET,
 * EHLO. */
struct smtp_transaction {
    struct span reverse_path; /* without <>; empty: the null reverse-path */
    struct span candidate;   /* at SMTP_EVENT_RCPT; points into the bytes that were given, so answer
                                at once */
    struct span *recipients; /* those accepted, in order */
    size_t recipient_count;
    uint64_t declared_bytes; /* SIZE=, 0 when not given */
    bool body_8bit;          /* BODY=8BITMIME */
    bool smtputf8;
    struct span message; /* at SMTP_EVENT_MESSAGE: CR LF everywhere, dots unstuffed */
};

struct smtp_credentials {
    const char *mechanism; /* "PLAIN" or "LOGIN" */
    struct span user;
    struct span password;
};

/* A reply of one line. `text` may hold anything: it is made printable and cut. */
struct smtp_reply {
    unsigned code;        /* 2xx yes, 4xx and 5xx no; 421 also closes */
    const char *enhanced; /* "4.3.1" */
    struct span text;
};

struct smtp_counts {
    uint64_t commands;
    uint64_t refused;  /* 4xx and 5xx replies */
    uint64_t messages; /* accepted */
};

struct smtp;

/* `tls`: the connection is encrypted from the start. */
struct smtp *smtp_new(const struct smtp_conf *conf, bool tls);
void smtp_free(struct smtp **machine);

/* The greeting, once, before anything else. */
void smtp_greet(struct smtp *m, struct buf *out);
/* Goes on as far as `bytes` reach. Asked again before the answer, it returns the same event. When
 * `out` cannot grow the event is SMTP_EVENT_CLOSE. */
enum smtp_event smtp_advance(struct smtp *m, struct span *bytes, struct buf *out);
/* Answers the question (MAIL, RCPT, DATA, MESSAGE, AUTH). NULL: yes, in the machine's words. A
 * message that was accepted should be answered with the words that name its id. */
void smtp_answer(struct smtp *m, const struct smtp_reply *reply, struct buf *out);
/* TLS is up: everything learnt so far is forgotten (RFC 3207 4.2) and the peer starts again with
 * EHLO. */
void smtp_tls_started(struct smtp *m);

/* The peer was silent too long, or the session must end now: the fitting 421 (or the refusal of the
 * message that was being read), then SMTP_EVENT_CLOSE. */
void smtp_expire(struct smtp *m, struct buf *out);
/* Ends the session with 421 and these words: "4.3.2", "Shutting down". */
void smtp_shut(struct smtp *m, const char *enhanced, const char *text, const char *end,
               struct buf *out);
/* Inside DATA: refuses the message with a 4xx, because its owner cannot keep it; the rest of it is
 * read and dropped. */
void smtp_refuse_data(struct smtp *m, const struct smtp_reply *reply);

/* What the owner asks the machine. */
const struct smtp_transaction *smtp_transaction(const struct smtp *m);
const struct smtp_credentials *smtp_credentials(const struct smtp *m);
/* Gives the message's memory back before the answer is known. */
void smtp_forget_message(struct smtp *m);
/* Wipes the password before the answer is known. */
void smtp_forget_password(struct smtp *m);
const struct smtp_counts *smtp_counts(const struct smtp *m);
/* The argument of EHLO or HELO, with bytes that are not printable ASCII as '?'. */
struct span smtp_helo(const struct smtp *m);
/* The protocol for Received (RFC 3848, RFC 6531): "SMTP", "ESMTPSA", "UTF8SMTPS", ... */
const char *smtp_with(const struct smtp *m);
bool smtp_in_data(const struct smtp *m);
/* No transaction is open and no question asked: the session may be ended without loss. */
bool smtp_is_idle(const struct smtp *m);
/* Inside DATA: the peer seems to wait, having ended its data in a way that is not the end of data.
 * The owner should call smtp_expire() when nothing more comes for a few seconds. */
bool smtp_peer_waits(const struct smtp *m);
/* Bytes held for the message at hand. */
size_t smtp_held_bytes(const struct smtp *m);
/* Why it ended, after SMTP_EVENT_CLOSE: "quit", "errors", "timeout", ... Static text. */
const char *smtp_end(const struct smtp *m);

#endif
