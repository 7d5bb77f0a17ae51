#include "backends/verdicts.h"

#include <stdio.h>

#define SECONDS 1000
#define MINUTES (60 * SECONDS)
#define HOURS (60 * (int64_t)MINUTES)

/* Choices that the table alone does not explain:
 *
 *  - A refusal that hangs on one message (its sender, its header) must not stop an account that
 * other clients use: 5.7.60 and SendAsDenied on a relay are CONFIG without a scope, so that batch
 * waits for the setting and the others go on; 5.6.241 fails its message. The same texts about a
 * fixed identity (HVE's MAIL FROM) are CONFIG for the account.
 *  - "Unable to relay" names the recipient, and a connector that takes internal recipients only is
 * a legitimate set-up, so it fails the recipient and says what to change.
 *  - Rows with VERDICT_REFRESH are for tokens; a pool that signs in with a password makes CONFIG of
 * them. */
const struct verdict_smtp_row verdict_smtp_rows[] = {
    /* -- Sign-in: services.md 1.4 and 5.3 -- */
    {.code = 550,
     .enhanced = "5.7.30",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "Exchange Online has switched Basic authentication off for client submission: use auth: xoauth2 "
         "with an app registration, or a backend of type hve or graph.",
     .source = "services.md 5.3",
     .example = "550 5.7.30 Basic authentication is not supported for Client Submission."},
    {.code = 535,
     .enhanced = "5.7.139",
     .text = "SmtpClientAuthentication is disabled for the Tenant",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "Turn SMTP AUTH on for the tenant (Set-TransportConfig -SmtpClientAuthenticationDisabled $false) "
         "or for this mailbox (Set-CASMailbox -SmtpClientAuthenticationDisabled $false).",
     .source = "services.md 5.3",
     .example =
         "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the "
         "Tenant. Visit https://aka.ms/smtp_auth_disabled for more information."},
    {.code = 535,
     .enhanced = "5.7.139",
     .text = "SmtpClientAuthentication is disabled for the Mailbox",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "Turn SMTP AUTH on for this mailbox: Set-CASMailbox -SmtpClientAuthenticationDisabled $false.",
     .source = "services.md 5.3",
     .example =
         "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the "
         "Mailbox. Visit https://aka.ms/smtp_auth_disabled for more information."},
    {.code = 535,
     .enhanced = "5.7.139",
     .text = "basic authentication is disabled",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "Basic authentication is off for this mailbox or tenant: allow it in the authentication policy "
         "(AllowBasicAuthSmtp) or use OAuth.",
     .source = "services.md 5.3",
     .example = "535 5.7.139 Authentication unsuccessful, basic authentication is disabled."},
    {.code = 535,
     .enhanced = "5.7.139",
     .text = "security defaults policy",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "Entra security defaults block this sign-in: turn them off and use conditional access, with this "
         "account excluded.",
     .source = "services.md 5.3",
     .example =
         "535 5.7.139 Authentication unsuccessful, user is locked by your organization's security "
         "defaults policy."},
    {.code = 535,
     .enhanced = "5.7.139",
     .text = "user credentials were incorrect",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy = "The user name or password is wrong: check the account's user and password_file.",
     .source = "services.md 5.3",
     .example = "535 5.7.139 Authentication unsuccessful, the user credentials were incorrect."},
    {.code = 535,
     .enhanced = "5.7.139",
     .text = "did not meet the criteria",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "Conditional access or an authentication policy refuses this sign-in: exclude the account.",
     .source = "services.md 5.3",
     .example =
         "535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be "
         "authenticated successfully. Contact your administrator."},
    {.code = 535,
     .enhanced = "5.7.139",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The organization does not allow this sign-in: check Entra security defaults, conditional access "
         "and the account's authentication policy (AllowBasicAuthSmtp).",
     .source = "services.md 1.4",
     .example =
         "535 5.7.139 Authentication unsuccessful, the organization configuration doesn't allow this "
         "authentication request."},
    {.code = 535,
     .enhanced = "5.7.142",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_REFRESH,
     .scope = SCOPE_ACCOUNT,
     .source = "services.md 1.4",
     .example = "535 5.7.142 Token will expire soon"},
    {.code = 535,
     .enhanced = "5.7.143",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_REFRESH,
     .scope = SCOPE_ACCOUNT,
     .source = "services.md 1.4",
     .example = "535 5.7.143 Expired token"},
    {.code = 501,
     .enhanced = "5.5.127",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_REFRESH,
     .scope = SCOPE_ACCOUNT,
     .source = "services.md 1.4",
     .example = "501 5.5.127 Invalid XOAUTH2 auth data - Token will expire soon error"},
    {.code = 501,
     .enhanced = "5.5.12*",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The service could not read the XOAUTH2 sign-in: check the account's user and credential.",
     .source = "services.md 1.4",
     .example = "501 5.5.121 Invalid XOAUTH2 argument"},
    {.code = 535,
     .enhanced = "5.7.144",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The token lacks the permission: grant the app Mail.Send of Office 365 Exchange Online (HVE) or "
         "SMTP.SendAsApp (client submission) with admin consent.",
     .source = "services.md 1.4",
     .example = "535 5.7.144 XOAUTH2 authentication failed. Invalid API permissions"},
    {.code = 535,
     .enhanced = "5.7.127",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The token was refused: check the app registration, its tenant and the account's user.",
     .source = "services.md 1.4",
     .example = "535 5.7.127 XOAUTH2 authentication failed"},
    {.code = 535,
     .enhanced = "5.7.3",
     .phases = PHASE_ANY,
     .kinds = KIND_HVE,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The HVE account or its password is wrong, or security defaults block it: reset the password of the "
         "HVE account and check password_file and Entra security defaults.",
     .source = "services.md 1.4",
     .example = "535 5.7.3 Authentication unsuccessful"},
    {.code = 535,
     .enhanced = "5.7.3",
     .phases = PHASE_ANY,
     .kinds = KIND_RELAY,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The sign-in was refused: check user and password_file, and that SMTP AUTH is on for the mailbox.",
     .source = "services.md 5.2",
     .example = "535 5.7.3 Authentication unsuccessful [SN2PR00CA0018.namprd00.prod.outlook.com]"},
    {.code = 5,
     .enhanced = "5.7.57",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The server wants a sign-in before mail: set auth, user and password_file of this backend.",
     .source = "services.md 5.3",
     .example =
         "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM"},
    {.code = 530,
     .enhanced = "5.7.1",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The server wants a sign-in before mail: set auth, user and password_file of this backend, or allow "
         "anonymous users on the receive connector.",
     .source = "services.md 5.5",
     .example = "530 5.7.1 Client was not authenticated"},
    {.code = 530,
     .phases = PHASE_CONNECT | PHASE_AUTH | PHASE_MAIL,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The server wants TLS or a sign-in first: set tls: starttls and auth of this backend.",
     .source = "RFC 3207 4, RFC 4954 6",
     .example = "530 Must issue a STARTTLS command first"},

    /* -- HVE: services.md 1.4 -- */
    {.code = 5,
     .enhanced = "5.7.240",
     .phases = PHASE_ANY,
     .kinds = KIND_HVE,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 5 * MINUTES,
     .remedy =
         "Add the app to the HVE account: Add-HVEAppAccess with the Object ID of the enterprise application; "
         "it takes up to 5 minutes to apply.",
     .source = "services.md 1.4",
     .example =
         "550 5.7.240 The application is not allowed for use with this High Volume Email account"},
    {.code = 5,
     .enhanced = "5.7.62",
     .phases = PHASE_ANY,
     .kinds = KIND_HVE,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "MAIL FROM is not the identity of the HVE account: the account's user must be its primary SMTP "
         "address.",
     .source = "services.md 1.4",
     .example = "550 5.7.62 The sender address is not the account's"},
    {.code = 5,
     .enhanced = "5.6.241",
     .phases = PHASE_ANY,
     .kinds = KIND_HVE,
     .verdict = VERDICT_MESSAGE_PERMANENT,
     .scope = SCOPE_NONE,
     .remedy =
         "The From field is not the identity of the HVE account: the account's user must be its primary SMTP "
         "address.",
     .source = "services.md 1.4",
     .example = "550 5.6.241 The From header is not the account's"},
    {.code = 5,
     .enhanced = "5.2.240",
     .phases = PHASE_ANY,
     .kinds = KIND_HVE,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The user that signed in is not an HVE account: make one with New-MailUser -HVEAccount.",
     .source = "services.md 1.4",
     .example = "550 5.2.240 The identity is not a High Volume Email account"},
    {.code = 5,
     .text = "billing",
     .phases = PHASE_ANY,
     .kinds = KIND_HVE,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy = "The HVE account has no valid billing policy: see Get-HVEAccountBillingPolicy.",
     .source = "services.md 1.4 (code and text unconfirmed)",
     .example = "550 5.7.1 The account has no valid billing policy"},
    {.code = 550,
     .enhanced = "5.7.1",
     .phases = PHASE_RCPT,
     .kinds = KIND_HVE,
     .verdict = VERDICT_RECIPIENT_PERMANENT,
     .scope = SCOPE_NONE,
     .remedy =
         "HVE delivers to accepted domains of the tenant only: route external recipients to another backend "
         "(tenant.accepted_domains decides what is internal).",
     .source = "services.md 1.1 (reply unconfirmed, 1.4)",
     .example = "550 5.7.1 External recipients are not allowed"},

    /* -- Pace: services.md 5.3 and 5.4 -- */
    {.code = 432,
     .text = "recipient thread limit exceeded",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_NONE,
     .source = "services.md 5.3",
     .example = "432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded"},
    {.code = 432,
     .text = "sender thread limit exceeded",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_THROTTLED,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 10 * SECONDS,
     .remedy = "The mailbox takes 3 connections at once: set concurrency: 3 or less.",
     .source = "services.md 5.3",
     .example = "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded"},
    {.code = 432,
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_THROTTLED,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 10 * SECONDS,
     .remedy = "The mailbox takes 3 connections at once: set concurrency: 3 or less.",
     .source = "services.md 5.3",
     .example =
         "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for "
         "more information. [Hostname=OS0PR01MB6099.jpnprd01.prod.outlook.com]"},
    {.code = 554,
     .text = "SubmissionQuotaExceeded",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_THROTTLED,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 1 * HOURS,
     .remedy =
         "The mailbox has used its 10,000 recipients of 24 hours: add mailboxes or lower rates.",
     .source = "services.md 5.3",
     .example = "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException"},
    {.code = 554,
     .enhanced = "5.2.2",
     .text = "STOREDRV.Submission",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_ACCOUNT_BLOCKED,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 1 * HOURS,
     .remedy =
         "The sending mailbox is full (every mail is kept in Sent Items): empty it or set a retention policy.",
     .source = "services.md 5.3",
     .example = "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException."
                "MapiExceptionShutoffQuotaExceeded"},
    {.code = 554,
     .text = "OutboundSpamException",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_ACCOUNT_BLOCKED,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 6 * HOURS,
     .remedy =
         "Exchange Online takes this mailbox for a spam source: look at Restricted entities in Defender.",
     .source = "services.md 5.3",
     .example =
         "554 5.2.0 STOREDRV.Submission.Exception:OutboundSpamException; Failed to process message"},
    {.code = 554,
     .text = "SendAsDenied",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_NONE,
     .wait_ms = 1 * HOURS,
     .remedy = "The account may not send as this address: grant Send As on it "
               "(Add-RecipientPermission -AccessRights SendAs).",
     .source = "services.md 5.3",
     .example = "554 5.2.252 SendAsDenied; app@contoso.com not allowed to send as erp@contoso.com; "
                "STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied"},
    {.code = 550,
     .enhanced = "5.2.25*",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_ACCOUNT_BLOCKED,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 1 * HOURS,
     .remedy =
         "Exchange Online has throttled this sender because of repeated errors; the text names them. Mend the "
         "cause: full mailbox, Send As rights, licence, too many or invalid recipients.",
     .source = "services.md 5.3",
     .example = "550 5.2.251 Sender throttled due to continuous mailbox full errors."},
    {.code = 550,
     .enhanced = "5.1.8",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_ACCOUNT_BLOCKED,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 6 * HOURS,
     .remedy =
         "The sender is blocked for outbound spam: release it under Restricted entities in Defender.",
     .source = "services.md 5.3",
     .example = "550 5.1.8 Access denied, bad outbound sender AS(42004)"},
    {.code = 550,
     .enhanced = "5.1.90",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_ACCOUNT_BLOCKED,
     .scope = SCOPE_ACCOUNT,
     .wait_ms = 1 * HOURS,
     .remedy = "The sender has reached its recipients of a day: add mailboxes or lower rates.",
     .source = "services.md 5.3",
     .example =
         "550 5.1.90 Your message can't be sent because you've reached your daily limit for message "
         "recipients"},
    {.code = 550,
     .enhanced = "5.7.705",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_ACCOUNT_BLOCKED,
     .scope = SCOPE_TENANT,
     .wait_ms = 1 * HOURS,
     .remedy =
         "The tenant has exceeded its sending threshold: see the Restricted tenants report and Microsoft "
         "support.",
     .source = "services.md 5.3",
     .example = "550 5.7.705 Access denied, tenant has exceeded threshold"},
    {.code = 550,
     .enhanced = "5.7.708",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_ACCOUNT_BLOCKED,
     .scope = SCOPE_BACKEND,
     .wait_ms = 1 * HOURS,
     .remedy =
         "The sending IP is not trusted (new tenant or bad IP): ask Microsoft support to release it.",
     .source = "services.md 5.3",
     .example =
         "550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP."},
    {.code = 550,
     .enhanced = "5.7.750",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_ACCOUNT_BLOCKED,
     .scope = SCOPE_BACKEND,
     .wait_ms = 1 * HOURS,
     .remedy =
         "The tenant sends from unregistered domains: add the sender domains as accepted domains.",
     .source = "services.md 5.3",
     .example =
         "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains."},
    {.code = 550,
     .enhanced = "5.7.703",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_RECIPIENT_PERMANENT,
     .scope = SCOPE_NONE,
     .remedy =
         "The tenant's own block list refuses this recipient or message: see Tenant Allow/Block List.",
     .source = "services.md 5.3",
     .example =
         "550 5.7.703 Your message can't be delivered because one or more recipients are blocked by your "
         "organization's tenant recipient block policy."},
    {.code = 550,
     .enhanced = "5.7.23*",
     .text = "limit",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_THROTTLED,
     .scope = SCOPE_TENANT,
     .wait_ms = 1 * HOURS,
     .remedy = "The tenant's external recipient rate limit (TERRL) of 24 hours is used up: see "
               "Get-LimitsEnforcementStatus; ACS and HVE do not count against it.",
     .source = "services.md 5.4",
     .example =
         "550 5.7.233 - Your message can't be sent because your tenant exceeded its daily limit for sending "
         "email to external recipients (tenant external recipient rate limit)"},
    {.code = 5,
     .enhanced = "5.2.121",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_NONE,
     .remedy = "The recipient takes no more mail from this sender in this hour.",
     .source = "services.md 5.3",
     .example =
         "550 5.2.121 Recipient's per hour message receive limit exceeded from a specific sender"},
    {.code = 5,
     .enhanced = "5.2.122",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_NONE,
     .remedy = "The recipient takes no more mail in this hour.",
     .source = "services.md 5.3",
     .example =
         "550 5.2.122 The recipient has exceeded their limit for the number of messages they can receive "
         "per hour"},
    {.code = 451,
     .enhanced = "4.7.5*",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_NONE,
     .source = "services.md 5.3",
     .example = "451 4.7.500 Server busy. Please try again later from [192.0.2.1]."},
    {.code = 452,
     .enhanced = "4.5.3",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_NONE,
     .remedy = "The server takes fewer recipients at once: lower recipients_per_message.",
     .source = "services.md 5.3, 5.5",
     .example = "452 4.5.3 Too many recipients"},

    /* -- Identity and relaying: services.md 5.3 and 5.5 -- */
    {.code = 550,
     .enhanced = "5.7.60",
     .phases = PHASE_ANY,
     .kinds = KIND_HVE,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The HVE account may not send as this address: the account's user must be its primary SMTP address.",
     .source = "services.md 5.3",
     .example = "550 5.7.60 SMTP; Client does not have permissions to send as this sender"},
    {.code = 550,
     .enhanced = "5.7.60",
     .phases = PHASE_ANY,
     .kinds = KIND_RELAY,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_NONE,
     .wait_ms = 1 * HOURS,
     .remedy =
         "The account may not send as this address: grant Send As on it "
         "(Add-RecipientPermission -AccessRights SendAs), or on-premises ms-Exch-SMTP-Accept-Any-Sender.",
     .source = "services.md 5.3",
     .example = "550 5.7.60 SMTP; Client does not have permissions to send as this sender"},
    {.code = 550,
     .enhanced = "5.7.64",
     .phases = PHASE_ANY,
     .kinds = KIND_RELAY,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_BACKEND,
     .remedy =
         "Exchange Online does not know this gateway: add its public IP address or TLS certificate to an "
         "inbound connector of type on-premises.",
     .source = "services.md 5.5",
     .example = "550 5.7.64 TenantAttribution; Relay Access Denied"},
    {.code = 550,
     .enhanced = "5.7.711",
     .phases = PHASE_ANY,
     .kinds = KIND_RELAY,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_BACKEND,
     .remedy =
         "The inbound connector does not fit this gateway: check its IP addresses and certificate name.",
     .source = "services.md 5.5",
     .example = "550 5.7.711 Access denied, bad inbound connector. AS(2204)"},
    {.code = 550,
     .enhanced = "5.7.68",
     .phases = PHASE_ANY,
     .kinds = KIND_RELAY,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_BACKEND,
     .remedy =
         "The tenant refuses direct send (RejectDirectSend): make an inbound connector for this gateway.",
     .source = "services.md 5.5",
     .example =
         "550 5.7.68 TenantInboundAttribution; Direct Send not allowed for this organization from "
         "unauthorized sources"},
    {.code = 550,
     .enhanced = "5.7.1",
     .text = "unable to relay",
     .phases = PHASE_ANY,
     .kinds = KIND_RELAY,
     .verdict = VERDICT_RECIPIENT_PERMANENT,
     .scope = SCOPE_NONE,
     .remedy =
         "The server does not relay to this domain for us: allow this gateway on the receive connector "
         "(ms-Exch-SMTP-Accept-Any-Recipient), or route the recipient elsewhere.",
     .source = "services.md 5.5",
     .example = "550 5.7.1 Unable to relay"},
    {.code = 550,
     .enhanced = "5.4.1",
     .text = "relay access denied",
     .phases = PHASE_ANY,
     .kinds = KIND_RELAY,
     .verdict = VERDICT_RECIPIENT_PERMANENT,
     .scope = SCOPE_NONE,
     .remedy =
         "The server does not relay to this domain for us: the inbound connector does not fit, or the domain "
         "is no accepted domain.",
     .source = "services.md 5.5",
     .example = "550 5.4.1 Relay Access Denied"},
    {.code = 550,
     .enhanced = "5.4.1",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_RECIPIENT_PERMANENT,
     .scope = SCOPE_NONE,
     .source = "services.md 5.3",
     .example = "550 5.4.1 Recipient address rejected: Access denied"},
    {.code = 550,
     .enhanced = "5.1.10",
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_RECIPIENT_PERMANENT,
     .scope = SCOPE_NONE,
     .source = "services.md 5.3",
     .example =
         "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup"},
    {.code = 550,
     .enhanced = "5.1.7",
     .phases = PHASE_MAIL,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_MESSAGE_PERMANENT,
     .scope = SCOPE_NONE,
     .remedy = "The server does not take this sender address.",
     .source = "services.md 5.5",
     .example = "550 5.1.7 Invalid address"},
    {.code = 501,
     .enhanced = "5.5.4",
     .text = "domain name",
     .phases = PHASE_CONNECT,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_BACKEND,
     .remedy =
         "The server does not take our name in EHLO: set hostname to this gateway's full host name.",
     .source = "services.md 5.5",
     .example = "501 5.5.4 Invalid domain name"},
    {.code = 5,
     .enhanced = "5.3.4",
     .phases = PHASE_SENDING,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_MESSAGE_PERMANENT,
     .scope = SCOPE_NONE,
     .remedy = "The message is larger than the server takes: set message_bytes of this backend.",
     .source = "services.md 1.4",
     .example = "552 5.3.4 Message size exceeds fixed maximum message size"},
    {.code = 5,
     .enhanced = "5.6.11",
     .phases = PHASE_SENDING,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_MESSAGE_PERMANENT,
     .scope = SCOPE_NONE,
     .remedy = "The message holds a bare LF, which the server refuses.",
     .source = "services.md 5.1",
     .example = "550 5.6.11 Invalid characters: bare line feed"},
    {.code = 552,
     .phases = PHASE_RCPT,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_NONE,
     .source = "RFC 5321 4.5.3.1.10: 552 at RCPT is to be treated as 452",
     .example = "552 Too many recipients"},

    {.code = 503,
     .phases = PHASE_SENDING,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_NONE,
     .source = "RFC 5321 4.2.3: the session is out of step, which is not the message's fault",
     .example = "503 5.5.1 Bad sequence of commands"},

    /* -- The classes -- */
    {.code = 2,
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_DELIVERED,
     .scope = SCOPE_NONE,
     .source = "RFC 5321 4.2.1; services.md 5.1",
     .example =
         "250 2.0.0 OK <m@contoso.com> [Hostname=VI1PR01MB1234.eurprd01.prod.exchangelabs.com]"},
    {.code = 4,
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_NONE,
     .source = "RFC 5321 4.2.1",
     .example = "421 4.3.2 Service shutting down"},
    {.code = 5,
     .phases = PHASE_RCPT,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_RECIPIENT_PERMANENT,
     .scope = SCOPE_NONE,
     .source = "RFC 5321 4.2.1",
     .example = "550 5.1.1 User unknown"},
    {.code = 5,
     .phases = PHASE_MAIL | PHASE_DATA | PHASE_DOT,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_MESSAGE_PERMANENT,
     .scope = SCOPE_NONE,
     .source = "RFC 5321 4.2.1",
     .example = "554 Transaction failed"},
    {.code = 5,
     .phases = PHASE_AUTH,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_CONFIG,
     .scope = SCOPE_ACCOUNT,
     .remedy =
         "The server refused the sign-in: check auth, user and password_file of this backend.",
     .source = "RFC 4954 6",
     .example = "535 Authentication credentials invalid"},
    /* Greeting or EHLO refused; and a positive or intermediate reply where none belongs. Our own
     * trouble or the server's: never the message's. */
    {.code = 5,
     .phases = PHASE_CONNECT,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_NONE,
     .source = "RFC 5321 3.1",
     .example = "554 No SMTP service here"},
    {.code = 0,
     .phases = PHASE_ANY,
     .kinds = KIND_SMTP,
     .verdict = VERDICT_TRANSIENT,
     .scope = SCOPE_NONE,
     .source = "RFC 5321 4.2.1",
     .example = "354 Start mail input"},
};

const size_t verdict_smtp_row_count = sizeof verdict_smtp_rows / sizeof *verdict_smtp_rows;

static bool code_fits(uint16_t wanted, uint32_t code)
{
    return wanted == 0 || (wanted < 10 ? code / 100 == wanted : code == wanted);
}

/* The enhanced status code `text` begins with (RFC 2034 4), or an empty span. */
static struct span enhanced_of(struct span text)
{
    size_t dots = 0;
    size_t len = 0;
    while (len < text.len && len < 10) {
        char c = text.data[len];
        if (c == '.') {
            dots++;
        } else if (c < '0' || c > '9') {
            break;
        }
        len++;
    }
    return span_make(text.data, dots == 2 ? len : 0);
}

static bool enhanced_fits(const char *wanted, struct span enhanced)
{
    if (wanted == NULL) {
        return true;
    }
    struct span want = span_of(wanted);
    if (want.data[want.len - 1] == '*') {
        return span_starts(enhanced, span_make(want.data, want.len - 1));
    }
    return span_eq(enhanced, want);
}

static bool text_fits(const char *wanted, struct span text)
{
    if (wanted == NULL) {
        return true;
    }
    struct span want = span_of(wanted);
    for (size_t i = 0; i + want.len <= text.len; i++) {
        if (span_ieq(span_make(text.data + i, want.len), want)) {
            return true;
        }
    }
    return false;
}

const struct verdict_smtp_row *verdict_smtp_find(enum verdict_kind kind, enum verdict_phase phase,
                                                 uint32_t code, struct span text)
{
    struct span enhanced = enhanced_of(text);
    for (size_t i = 0; i < verdict_smtp_row_count; i++) {
        const struct verdict_smtp_row *row = &verdict_smtp_rows[i];
        if (code_fits(row->code, code) && (row->phases & (unsigned)phase) != 0 &&
            (row->kinds & (unsigned)kind) != 0 && enhanced_fits(row->enhanced, enhanced) &&
            text_fits(row->text, text)) {
            return row;
        }
    }
    UNREACHABLE(); /* the last row fits everything */
}

void verdict_smtp_answer(enum verdict_kind kind, enum verdict_phase phase, uint32_t code,
                         struct span text, struct answer *out)
{
    const struct verdict_smtp_row *row = verdict_smtp_find(kind, phase, code, text);
    out->verdict = row->verdict;
    out->scope = row->scope;
    out->wait_ms = row->wait_ms;
    out->code = code;
    out->remedy = row->remedy;
    (void)snprintf(out->text, sizeof out->text, "%u %.*s", (unsigned)code,
                   SPAN_FMT(text)); /* cut */
}

void verdict_own_answer(enum verdict verdict, const char *text, struct answer *out)
{
    out->verdict = verdict;
    out->scope = SCOPE_NONE;
    out->wait_ms = 0;
    out->code = 0;
    out->remedy = NULL;
    (void)snprintf(out->text, sizeof out->text, "%s", text); /* cut */
}
