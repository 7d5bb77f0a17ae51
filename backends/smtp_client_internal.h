/* The inside of the SMTP client machine, shared by its three files: smtp_client.c (life and
 * output), smtp_client_setup.c (greeting to sign-in) and smtp_client_send.c (transactions). For
 * nobody else.
 *
 * Invariants:
 *
 *  - `owed` lists, in order, what each reply still to come answers. Replies never come without one,
 * except that a server may take its leave at any time.
 *  - A transaction is in exactly one of: the waiting list, `opening` (its commands are being sent
 * or answered), `content` (its content is being written), `dot` (its final dot is written and
 * unanswered). `load` counts them all.
 *  - Content follows an empty `owed`: DATA is the last command of a group, and its 354 the last
 * reply.
 *  - Callbacks run with `inside` set, so that what they give is taken up by the pump that is
 * running or follows. */
#ifndef HEAVE_BACKENDS_SMTP_CLIENT_INTERNAL_H
#define HEAVE_BACKENDS_SMTP_CLIENT_INTERNAL_H

#include "backends/smtp_client.h"
#include "backends/smtp_reply.h"

enum smtp_state {
    STATE_GREETING,
    STATE_EHLO,
    STATE_HELO,
    STATE_STARTTLS,
    STATE_TLS, /* handshake under way */
    STATE_AUTH_LOGIN,
    STATE_AUTH_USER,
    STATE_AUTH_FINAL,
    STATE_READY,
    STATE_QUIT,
    STATE_ENDED,
};

enum smtp_owed {
    OWED_RSET,
    OWED_MAIL,
    OWED_RCPT,
    OWED_DATA,
    OWED_DOT,
    OWED_EMPTY_DOT, /* of a message that nobody was to get */
};

/* The last dot, RSET, MAIL, DATA, and the recipients. */
#define OWED_MAX (BATCH_RECIPIENTS_MAX + 6)

struct smtp_owed_reply {
    uint8_t kind; /* enum smtp_owed */
    uint8_t recipient;
};

enum smtp_mark {
    MARK_OPEN,
    MARK_ACCEPTED,
    MARK_LATER,
    MARK_ANSWERED,
};

/* Where in a line the content stands, for dot-stuffing across chunks. */
enum smtp_line_state {
    LINE_START, /* after CR LF, or nothing written yet */
    LINE_INSIDE,
    LINE_AFTER_CR,
};

struct smtp_client {
    const struct smtp_client_conf *conf;
    const struct smtp_client_ops *ops;
    void *ctx;
    enum smtp_state state;
    bool tls;
    bool was_ready;
    bool quitting;
    bool inside;
    bool needs_rset; /* the server still holds a transaction that came to nothing */
    unsigned extensions;
    uint64_t size_limit; /* of the server; 0: none said */
    struct smtp_reply reply;
    struct buf out; /* commands of this turn */
    struct smtp_owed_reply owed[OWED_MAX];
    size_t owed_first;
    size_t owed_count;
    struct smtp_transaction *waiting;
    struct smtp_transaction *waiting_last;
    struct smtp_transaction *opening;
    struct smtp_transaction *content;
    struct smtp_transaction *dot;
    size_t load;
    struct answer reason;
};

static inline bool smtp_client_pipelines(const struct smtp_client *client)
{
    return (client->extensions & SMTP_EXT_PIPELINING) != 0;
}

/* ---- smtp_client.c ---- */

/* Appends to the commands of this turn; smtp_client_flush() writes them. Trouble ends the session.
 */
void smtp_client_put(struct smtp_client *client, struct span bytes);
void smtp_client_flush(struct smtp_client *client);
/* Ends the session, losing what is inside: in our own words; with the reply just read; because the
 * reply made no sense. All do nothing once it has ended. */
void smtp_client_end(struct smtp_client *client, enum verdict verdict, const char *text);
void smtp_client_end_refused(struct smtp_client *client, enum verdict_phase phase);
void smtp_client_end_protocol(struct smtp_client *client);
/* Gives a transaction back. */
void smtp_client_complete(struct smtp_client *client, struct smtp_transaction *transaction);
/* Takes the first waiting transaction; NULL when none waits. */
struct smtp_transaction *smtp_client_waiting_take(struct smtp_client *client);

/* ---- smtp_client_setup.c ---- */

/* One line of the reply to EHLO, after the first. */
void smtp_client_setup_extension(struct smtp_client *client, struct span line);
/* A whole reply in any state before STATE_READY. */
void smtp_client_setup_reply(struct smtp_client *client);
/* Says EHLO again inside TLS. */
void smtp_client_setup_hello(struct smtp_client *client);

/* ---- smtp_client_send.c ---- */

/* Writes whatever may be written now. */
void smtp_client_send_pump(struct smtp_client *client);
/* A whole reply in STATE_READY. */
void smtp_client_send_reply(struct smtp_client *client);

#endif
