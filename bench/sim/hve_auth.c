#include "bench/sim/hve_session.h"
#include "bench/sim/jwt.h"
#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

#include <stdio.h>

#define AUTH_TEXT_MAX ((size_t)16 * 1024)

static void auth_failed(struct hve_session *session, const char *line)
{
    ledger_counts(session->sim->ledger, SIM_HVE)->auth_failures++;
    session->state = HVE_COMMAND;
    hve_reply(session, "%s", line);
}

static void wrong_credentials(struct hve_session *session)
{
    auth_failed(session, "535 5.7.3 Authentication unsuccessful [" HVE_HOST "]");
}

static void auth_done(struct hve_session *session, struct span account)
{
    (void)snprintf(session->account, sizeof(session->account), "%.*s", SPAN_FMT(account));
    session->state = HVE_COMMAND;
    hve_reply(session, "235 2.7.0 Authentication successful");
}

static void take_user(struct hve_session *session, struct span line)
{
    struct buf text;
    buf_init(&text, sizeof(session->auth_user) - 1);
    if (codec_base64_decode(line, false, &text) != 0) {
        buf_release(&text);
        wrong_credentials(session);
        return;
    }
    (void)snprintf(session->auth_user, sizeof(session->auth_user), "%.*s",
                   SPAN_FMT(buf_span(&text)));
    buf_release(&text);
    session->state = HVE_AUTH_PASSWORD;
    hve_reply(session, "334 UGFzc3dvcmQ6"); /* "Password:" */
}

static void take_password(struct hve_session *session, struct span line)
{
    struct buf text;
    struct span account = {0};
    struct span secret = sim_list_secret(&session->sim->conf->hve_accounts,
                                         span_of(session->auth_user), &account);
    buf_init_secret(&text, 1024);
    bool good = codec_base64_decode(line, false, &text) == 0 && secret.data != NULL &&
                jwt_secret_eq(buf_span(&text), secret);
    buf_release(&text);
    if (good) {
        auth_done(session, account);
    } else {
        wrong_credentials(session);
    }
}

/* The line that refuses a token, or NULL when it is good (services.md 1.2, 1.4). */
static const char *check_token(struct hve_session *session, struct span token)
{
    struct jwt jwt;
    struct span key = span_make((const char *)session->sim->token_key, SIM_TOKEN_KEY_BYTES);
    int64_t now_s = clock_wall_ms() / 1000;
    if (jwt_read(key, token, &jwt) != 0 ||
        !span_starts(span_of(jwt.audience), SPAN_LIT("https://outlook.office"))) {
        return "535 5.7.3 Authentication unsuccessful [" HVE_HOST "]";
    }
    if (jwt.expires_s <= now_s) {
        return "535 5.7.143 Expired token";
    }
    if (jwt.expires_s - now_s < (int64_t)session->sim->conf->hve_min_token_life_s) {
        return "535 5.7.142 Token will expire soon";
    }
    if (!jwt_has_role(&jwt, "Mail.Send")) {
        return "535 5.7.144 XOAUTH2 authentication failed. Invalid API permissions";
    }
    session->token_expires_ms = jwt.expires_s * 1000;
    return NULL;
}

/* "user=a@b\x01auth=Bearer TOKEN\x01\x01" (services.md 5.2). Which defect has which code
 * of 5.5.121-126 is unconfirmed. */
static void take_token_text(struct hve_session *session, struct span text)
{
    struct span auth = text;
    struct span user = span_cut(&auth, '\x01');
    if (!span_starts(user, SPAN_LIT("user="))) {
        auth_failed(session, "501 5.5.122 Invalid XOAUTH2 auth data format: user");
        return;
    }
    if (!span_istarts(auth, SPAN_LIT("auth=Bearer ")) || !span_ends(auth, SPAN_LIT("\x01\x01"))) {
        auth_failed(session, "501 5.5.123 Invalid XOAUTH2 auth data format: auth");
        return;
    }
    struct span account = {0};
    struct span secret = sim_list_secret(&session->sim->conf->hve_accounts,
                                         span_make(user.data + 5, user.len - 5), &account);
    const char *refusal = check_token(session, span_make(auth.data + 12, auth.len - 14));
    if (refusal == NULL && secret.data == NULL) {
        refusal = "535 5.7.3 Authentication unsuccessful [" HVE_HOST "]";
    }
    if (refusal != NULL) {
        session->token_expires_ms = 0;
        auth_failed(session, refusal);
    } else {
        auth_done(session, account);
    }
}

static void take_token(struct hve_session *session, struct span line)
{
    struct buf text;
    buf_init_secret(&text, AUTH_TEXT_MAX);
    if (codec_base64_decode(line, false, &text) != 0) {
        auth_failed(session, "501 5.5.121 Invalid XOAUTH2 argument: base64");
    } else {
        take_token_text(session, buf_span(&text));
    }
    buf_release(&text);
}

void hve_auth_line(struct hve_session *session, struct span line)
{
    if (span_eq(line, SPAN_LIT("*"))) {
        session->state = HVE_COMMAND;
        hve_reply(session, "501 5.7.0 Authentication cancelled");
    } else if (session->state == HVE_AUTH_USER) {
        take_user(session, line);
    } else if (session->state == HVE_AUTH_PASSWORD) {
        take_password(session, line);
    } else {
        take_token(session, line);
    }
}

static void auth_login(struct hve_session *session, struct span initial)
{
    if (initial.len > 0) {
        take_user(session, initial);
        return;
    }
    session->state = HVE_AUTH_USER;
    hve_reply(session, "334 VXNlcm5hbWU6"); /* "Username:" */
}

static void auth_xoauth2(struct hve_session *session, struct span initial)
{
    if (initial.len > 0) {
        take_token(session, initial);
        return;
    }
    session->state = HVE_AUTH_TOKEN;
    hve_reply(session, "334 ");
}

void hve_auth_command(struct hve_session *session, struct span argument)
{
    const struct sim_conf *conf = session->sim->conf;
    struct span initial = argument;
    struct span mechanism = span_cut(&initial, ' ');
    bool secure = stream_is_tls(session->stream) || conf->hve_tls == SIM_HVE_PLAIN;
    if (!session->said_hello) {
        hve_reject(session, "503 5.5.2 Send hello first");
    } else if (session->account[0] != '\0') {
        hve_reject(session, "503 5.5.2 Already authenticated");
    } else if (secure && !conf->hve_open && span_ieq(mechanism, SPAN_LIT("LOGIN"))) {
        auth_login(session, span_trim(initial));
    } else if (secure && !conf->hve_open && span_ieq(mechanism, SPAN_LIT("XOAUTH2"))) {
        auth_xoauth2(session, span_trim(initial));
    } else {
        hve_reject(session, "504 5.7.4 Unrecognized authentication type");
    }
}
