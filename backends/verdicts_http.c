#include "backends/verdicts.h"

#define SECONDS 1000
#define MINUTES (60 * SECONDS)
#define HOURS (60 * (int64_t)MINUTES)

/* Choices that the table alone does not explain:
 *
 *  - Graph uses one error.code with several statuses (services.md 3.6), so its rows ask for the
 * code and leave the status open.
 *  - A 5xx to a request that was sent whole is UNKNOWN: the service may have accepted it. rest.c
 * makes THROTTLED of a 503 that carries Retry-After: such an answer says that nothing was done.
 *  - An answer nobody documents (200 or 3xx to a send) does not come from the service but from
 * something between, so nothing was accepted.
 *  - The quota for asking ACS is not the one for sending: its 429 holds only the batch that asked.
 */

#define ACS_ANY ((unsigned)(KIND_ACS_SEND | KIND_ACS_STATUS))
#define KIND_ANY ((unsigned)(KIND_ACS_SEND | KIND_ACS_STATUS | KIND_GRAPH | KIND_TOKEN))

#define REMEDY_ACS_KEY                                                                              \
    "Check access_key and endpoint (no path, no trailing slash) against the resource's Keys page, " \
    "and the clock of this machine."
#define REMEDY_ACS_SENDER \
    "Link the verified domain of the sender to the Communication Services resource (Email, Domains)."
#define REMEDY_GRAPH_SEND                                                                           \
    "Grant the application permission Mail.Send with admin consent, and let RBAC for Applications " \
    "or the application access policy include this mailbox."
#define REMEDY_GRAPH_LIMIT \
    "The mailbox has sent what Exchange Online allows for now; add mailboxes or spread the load."

#define GRAPH_ROW(code_, class_, scope_, wait_, remedy_, example_)                    \
    {                                                                                 \
        .code = (code_), .kinds = KIND_GRAPH, .verdict = (class_), .scope = (scope_), \
        .wait_ms = (wait_), .remedy = (remedy_), .source = "services.md 3.6",         \
        .example = (example_)                                                         \
    }
#define TOKEN_ROW(number_, remedy_, example_)                                                      \
    {                                                                                              \
        .code = (number_), .kinds = KIND_TOKEN, .verdict = VERDICT_CONFIG, .scope = SCOPE_BACKEND, \
        .wait_ms = 5 * MINUTES, .remedy = (remedy_), .source = "services.md 4.6",                  \
        .example = (example_)                                                                      \
    }

const struct verdict_http_row verdict_http_rows[] = {
    /* -- ACS: services.md 2.3 -- */
    {.status = 202,
     .kinds = KIND_ACS_SEND,
     .verdict = VERDICT_DELIVERED,
     .source = "services.md 2.1",
     .example = "202 - Running"},
    {.status = 409,
     .kinds = KIND_ACS_SEND,
     .verdict = VERDICT_DELIVERED,
     .source = "services.md 2.3: a known Operation-Id was accepted before",
     .example = "409 Conflict An operation with this id exists already."},
    {.status = 429,
     .text = "PerHourLimitExceeded",
     .kinds = KIND_ACS_SEND,
     .verdict = VERDICT_THROTTLED,
     .scope = SCOPE_BACKEND,
     .wait_ms = 1 * HOURS,
     .source = "services.md 2.3",
     .example = "429 TooManyRequests PerSubscriptionPerHourLimitExceeded - Please try again after "
                "3636 seconds."},
    {.status = 429,
     .kinds = KIND_ACS_SEND,
     .verdict = VERDICT_THROTTLED,
     .scope = SCOPE_BACKEND,
     .wait_ms = 1 * MINUTES,
     .source = "services.md 2.3",
     .example = "429 TooManyRequests PerSubscriptionPerMinuteLimitExceeded - Please try again "
                "after 60 seconds."},
    {.status = 429,
     .kinds = KIND_ACS_STATUS,
     .verdict = VERDICT_THROTTLED,
     .wait_ms = 1 * MINUTES,
     .source = "services.md 2.6",
     .example = "429 TooManyRequests PerSubscriptionPerMinuteLimitExceeded - Please try again "
                "after 60 seconds."},
    {.status = 401,
     .kinds = ACS_ANY,
     .verdict = VERDICT_REFRESH,
     .scope = SCOPE_BACKEND,
     .remedy = REMEDY_ACS_KEY,
     .source = "services.md 2.3",
     .example = "401 Denied Denied by the resource provider."},
    {.status = 403,
     .kinds = ACS_ANY,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_BACKEND,
     .remedy = REMEDY_ACS_KEY,
     .source = "services.md 2.5",
     .example = "403 Forbidden The caller has no access to this resource."},
    {.status = 404,
     .code = "DomainNotLinked",
     .kinds = KIND_ACS_SEND,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_BACKEND,
     .remedy = REMEDY_ACS_SENDER,
     .source = "services.md 2.3",
     .example = "404 DomainNotLinked The specified sender domain has not been linked."},
    {.status = 400,
     .code = "InvalidSenderUserName",
     .kinds = KIND_ACS_SEND,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_BACKEND,
     .remedy = "Add the local part of `sender` as a MailFrom address of the domain (Email "
               "Communication Services, Provision domains, MailFrom addresses).",
     .source = "services.md 2.3",
     .example = "400 InvalidSenderUserName Invalid email sender username. Please use a username "
                "from the list of valid usernames configured by your admin."},
    {.status = 400,
     .text = "Invalid format for email address",
     .kinds = KIND_ACS_SEND,
     .verdict = VERDICT_RECIPIENT_PERMANENT,
     .source = "services.md 2.3",
     .example = "400 BadRequest Invalid format for email address"},
    {.status = 413,
     .kinds = KIND_ACS_SEND,
     .verdict = VERDICT_MESSAGE_PERMANENT,
     .remedy = "ACS takes 10 MB per request, attachments after base64 included.",
     .source = "services.md 2.6",
     .example = "413 RequestEntityTooLarge The request is too large."},
    {.status = 408,
     .kinds = KIND_ACS_SEND,
     .verdict = VERDICT_TRANSIENT,
     .source = "RFC 9110 15.5.9",
     .example = "408 - Request Timeout"},
    {.status = 400,
     .kinds = KIND_ACS_SEND,
     .verdict = VERDICT_MESSAGE_PERMANENT,
     .source = "services.md 2.3",
     .example = "400 BadRequest A reserved header cannot be set."},

    /* -- Graph: services.md 3.6 -- */
    {.status = 202,
     .kinds = KIND_GRAPH,
     .verdict = VERDICT_DELIVERED,
     .source = "services.md 3.1",
     .example = "202 - "},
    GRAPH_ROW("InvalidAuthenticationToken", VERDICT_REFRESH, SCOPE_BACKEND, 0,
              "Check tenant, client and secret of the credential, and its scope.",
              "401 InvalidAuthenticationToken Access token has expired or is not yet valid."),
    GRAPH_ROW("ErrorExceededMessageLimit", VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT, 4 * HOURS,
              REMEDY_GRAPH_LIMIT,
              "403 ErrorExceededMessageLimit Cannot send mail. Daily Message/Recipient limit "
              "exceeded."),
    GRAPH_ROW("ErrorExceededHourlyMessageLimit", VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT, 1 * HOURS,
              REMEDY_GRAPH_LIMIT, "429 ErrorExceededHourlyMessageLimit Hourly limit exceeded."),
    GRAPH_ROW("ErrorSubmissionQuotaExceeded", VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT, 4 * HOURS,
              REMEDY_GRAPH_LIMIT, "403 ErrorSubmissionQuotaExceeded Submission quota exceeded."),
    GRAPH_ROW("ErrorQuotaExceeded", VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT, 4 * HOURS,
              "The mailbox is full: sendMail in MIME form keeps a copy in Sent Items; empty it or "
              "give it a retention policy.",
              "507 ErrorQuotaExceeded The mailbox has exceeded its quota."),
    GRAPH_ROW("ErrorExceededMaxRecipientLimit", VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT, 4 * HOURS,
              REMEDY_GRAPH_LIMIT, "400 ErrorExceededMaxRecipientLimit Too many recipients."),
    GRAPH_ROW("ErrorMessageSubmissionBlocked", VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT, 4 * HOURS,
              "Exchange Online has blocked this sender: see Restricted entities in the Defender "
              "portal.",
              "403 ErrorMessageSubmissionBlocked Message submission is blocked."),
    GRAPH_ROW("ErrorAccountSuspend", VERDICT_ACCOUNT_BLOCKED, SCOPE_ACCOUNT, 4 * HOURS,
              "Exchange Online has suspended this account: see Restricted entities in the Defender "
              "portal.",
              "403 ErrorAccountSuspend Account suspended."),
    GRAPH_ROW("ApplicationThrottled", VERDICT_THROTTLED, SCOPE_ACCOUNT, 10 * SECONDS, NULL,
              "429 ApplicationThrottled Application is over its MailboxConcurrency limit."),
    GRAPH_ROW("ActivityLimitReached", VERDICT_THROTTLED, SCOPE_ACCOUNT, 10 * SECONDS, NULL,
              "429 ActivityLimitReached The app is throttled."),
    {.status = 429,
     .kinds = KIND_GRAPH,
     .verdict = VERDICT_THROTTLED,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 10 * SECONDS,
     .source = "services.md 3.4",
     .example = "429 TooManyRequests Too many requests."},
    GRAPH_ROW("ErrorAccessDenied", VERDICT_CONFIG, SCOPE_ACCOUNT, 5 * MINUTES, REMEDY_GRAPH_SEND,
              "403 ErrorAccessDenied Access is denied. Check credentials and try again."),
    GRAPH_ROW("Authorization_RequestDenied", VERDICT_CONFIG, SCOPE_ACCOUNT, 5 * MINUTES,
              REMEDY_GRAPH_SEND,
              "403 Authorization_RequestDenied Insufficient privileges to complete the operation."),
    GRAPH_ROW("ErrorSendAsDenied", VERDICT_CONFIG, SCOPE_ACCOUNT, 5 * MINUTES,
              "The From of the message is not an address of this mailbox: give the mailbox that "
              "address or the right to send as it.",
              "403 ErrorSendAsDenied The user account which was used to submit this request does "
              "not have the right to send mail on behalf of the specified sending account., "
              "Cannot submit message."),
    GRAPH_ROW("ErrorInvalidUser", VERDICT_CONFIG, SCOPE_ACCOUNT, 5 * MINUTES,
              "The mailbox does not exist in this tenant: check `mailboxes`.",
              "404 ErrorInvalidUser The requested user is invalid."),
    GRAPH_ROW("MailboxNotEnabledForRESTAPI", VERDICT_CONFIG, SCOPE_ACCOUNT, 5 * MINUTES,
              "The user has no Exchange Online mailbox (no licence, or it is on-premises).",
              "404 MailboxNotEnabledForRESTAPI REST API is not yet supported for this mailbox."),
    GRAPH_ROW("ErrorInvalidRecipients", VERDICT_RECIPIENT_PERMANENT, SCOPE_NONE, 0, NULL,
              "400 ErrorInvalidRecipients At least one recipient isn't valid."),
    GRAPH_ROW("ErrorMessageSizeExceeded", VERDICT_MESSAGE_PERMANENT, SCOPE_NONE, 0,
              "The message is larger than the mailbox may send.",
              "413 ErrorMessageSizeExceeded The message exceeds the maximum supported size."),
    GRAPH_ROW("ErrorItemSizeExceeded", VERDICT_MESSAGE_PERMANENT, SCOPE_NONE, 0,
              "The message is larger than the mailbox may send.",
              "400 ErrorItemSizeExceeded The item is too large."),
    {.status = 413,
     .kinds = KIND_GRAPH,
     .verdict = VERDICT_MESSAGE_PERMANENT,
     .remedy = "Graph takes about 4 MB per request, which is 3 MB of message.",
     .source = "services.md 3.2",
     .example = "413 - Request Entity Too Large"},
    {.status = 401,
     .kinds = KIND_GRAPH,
     .verdict = VERDICT_REFRESH,
     .scope = SCOPE_BACKEND,
     .remedy = "Check tenant, client and secret of the credential, and its scope.",
     .source = "services.md 3.6",
     .example = "401 - Unauthorized"},
    {.status = 403,
     .kinds = KIND_GRAPH,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 5 * MINUTES,
     .remedy = REMEDY_GRAPH_SEND,
     .source = "services.md 3.6",
     .example = "403 - Forbidden"},
    {.status = 400,
     .kinds = KIND_GRAPH,
     .verdict = VERDICT_MESSAGE_PERMANENT,
     .source = "services.md 3.6",
     .example = "400 ErrorMimeContentInvalidBase64String Invalid base64 string for MIME content."},
    {.status = 408,
     .kinds = KIND_GRAPH,
     .verdict = VERDICT_TRANSIENT,
     .source = "RFC 9110 15.5.9",
     .example = "408 - Request Timeout"},

    /* -- Tokens: services.md 4.6; code is the AADSTS number, text begins with `error` -- */
    TOKEN_ROW(
        "7000215",
        "The client secret is wrong: use the secret's value, not its id, of this application.",
        "401 7000215 invalid_client AADSTS7000215: Invalid client secret provided."),
    TOKEN_ROW("7000222", "The client secret has expired: make a new one in the app registration.",
              "401 7000222 invalid_client AADSTS7000222: The provided client secret keys are "
              "expired."),
    TOKEN_ROW("700016", "No application with this client_id is in the tenant: check both.",
              "400 700016 unauthorized_client AADSTS700016: Application was not found."),
    TOKEN_ROW("90002", "The tenant_id is not known to this authority: check both.",
              "400 90002 invalid_request AADSTS90002: Tenant not found."),
    TOKEN_ROW("70011", "The scope is not valid: it must be a resource followed by /.default.",
              "400 70011 invalid_scope AADSTS70011: The provided value for scope is not valid."),
    TOKEN_ROW("1002012", "The scope is not valid: it must be a resource followed by /.default.",
              "400 1002012 invalid_scope AADSTS1002012: The provided value for scope is not "
              "valid."),
    TOKEN_ROW("500011", "The resource of the scope has no service principal in this tenant.",
              "400 500011 invalid_resource AADSTS500011: The resource principal was not found."),
    TOKEN_ROW("50001", "The resource of the scope is not known in this tenant.",
              "400 50001 invalid_resource AADSTS50001: The resource is disabled or not found."),
    TOKEN_ROW("700027", "The certificate is not the one registered for the application.",
              "401 700027 invalid_client AADSTS700027: Client assertion failed signature "
              "validation."),
    {.status = 429,
     .kinds = KIND_TOKEN,
     .verdict = VERDICT_THROTTLED,
     .scope = SCOPE_BACKEND,
     .wait_ms = 10 * SECONDS,
     .source = "services.md 4.6",
     .example = "429 - Too Many Requests"},
    {.text = "temporarily_unavailable",
     .kinds = KIND_TOKEN,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_BACKEND,
     .source = "services.md 4.6",
     .example = "400 - temporarily_unavailable The service is busy."},
    {.text = "server_error",
     .kinds = KIND_TOKEN,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_BACKEND,
     .source = "services.md 4.6",
     .example = "400 - server_error An unexpected error."},
    {.status = 408,
     .kinds = KIND_TOKEN,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_BACKEND,
     .source = "RFC 9110 15.5.9",
     .example = "408 - Request Timeout"},
    {.status = 4,
     .kinds = KIND_TOKEN,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_BACKEND,
     .wait_ms = 5 * MINUTES,
     .remedy = "Check authority, tenant_id, client_id, client_secret and scope of the credential.",
     .source = "services.md 4.6",
     .example = "400 - invalid_grant AADSTS50000: There was an error."},

    /* -- What is left, by class -- */
    {.status = 4,
     .kinds = KIND_ACS_SEND | KIND_ACS_STATUS,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_BACKEND,
     .remedy = "Check `endpoint` and `api_version`: the service does not know this address.",
     .source = "RFC 9110 15.5",
     .example = "404 - Not Found"},
    {.status = 4,
     .kinds = KIND_GRAPH,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy = "Check `endpoint` and `mailboxes`: the service does not know this address.",
     .source = "RFC 9110 15.5",
     .example = "404 - Not Found"},
    {.status = 5,
     .kinds = KIND_ACS_SEND | KIND_GRAPH,
     .verdict = VERDICT_UNKNOWN,
     .source = "services.md 2.3, 3.6",
     .example = "504 UnknownError Gateway Timeout"},
    {.status = 5,
     .kinds = KIND_ACS_STATUS | KIND_TOKEN,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_BACKEND,
     .source = "services.md 4.6",
     .example = "503 - Service Unavailable"},
    {.status = 3,
     .kinds = KIND_ANY,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_BACKEND,
     .remedy = "Something redirects this address: check `endpoint` or `authority`.",
     .source = "RFC 9110 15.4",
     .example = "302 - Found"},
    {.kinds = KIND_ANY,
     .verdict = VERDICT_TRANSIENT,
     .remedy = "The answer is none of this service: check what stands between here and it.",
     .source = "services.md 2.1, 3.1, 4.1",
     .example = "200 - OK"},
};
const size_t verdict_http_row_count = sizeof(verdict_http_rows) / sizeof(verdict_http_rows[0]);

static bool contains_nocase(struct span text, struct span part)
{
    for (size_t at = 0; at + part.len <= text.len; at++) {
        if (span_ieq(span_make(text.data + at, part.len), part)) {
            return true;
        }
    }
    return false;
}

static bool row_matches(const struct verdict_http_row *row, enum verdict_http_kind kind,
                        uint32_t status, struct span code, struct span text)
{
    bool status_fits = row->status == 0 || row->status == status ||
                       (row->status < 10 && row->status == status / 100);
    return (row->kinds & (unsigned)kind) != 0 && status_fits &&
           (row->code == NULL || span_ieq(code, span_of(row->code))) &&
           (row->text == NULL || contains_nocase(text, span_of(row->text)));
}

const struct verdict_http_row *verdict_http_find(enum verdict_http_kind kind, uint32_t status,
                                                 struct span code, struct span text)
{
    for (size_t i = 0; i < verdict_http_row_count; i++) {
        if (row_matches(&verdict_http_rows[i], kind, status, code, text)) {
            return &verdict_http_rows[i];
        }
    }
    UNREACHABLE(); /* the last row matches everything */
}
