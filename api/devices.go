package api

import (
	"context"
	"encoding/json"
	"time"

	"mynah/authhook"
	"mynah/chat"
	"mynah/groups"
	"mynah/people"
)

// deviceHandlers are devices and services, and their credentials.
type deviceHandlers struct {
	people *people.Service
	groups *groups.Service
}

// CredentialFields are how a device is to prove itself.
type CredentialFields struct {
	Days int        `json:"days,omitempty" minimum:"1" maximum:"3650" doc:"How long the token is valid; default 365. Not with key"`
	Key  *deviceJWK `json:"key,omitempty" doc:"The public part of a key of the device's own, with which it signs its JWTs (EdDSA or ES256). Without it a token is given out"`
}

// deviceJWK is a public key (RFC 7517): Ed25519 or P-256.
type deviceJWK struct {
	KTY string `json:"kty" enum:"OKP,EC"`
	Crv string `json:"crv" enum:"Ed25519,P-256"`
	X   string `json:"x" maxLength:"64"`
	Y   string `json:"y,omitempty" maxLength:"64"`
	Use string `json:"use,omitempty" maxLength:"16"`
	Alg string `json:"alg,omitempty" maxLength:"16"`
	KID string `json:"kid,omitempty" maxLength:"128" doc:"Not used: the answer has the kid to use"`
}

func (c *CredentialFields) split() (ttl time.Duration, key json.RawMessage, err error) {
	if c.Key == nil {
		return time.Duration(c.Days) * 24 * time.Hour, nil, nil
	}
	if c.Days != 0 {
		return 0, nil, chat.Refuse(chat.CodeInvalid, "A key does not expire: leave days out.")
	}
	key, err = json.Marshal(c.Key)
	return 0, key, err
}

// credential is how a device proves itself, in the answer that shows it.
type credential struct {
	Token   string     `json:"token,omitempty" doc:"A JWT for MQTT and HTTP. It is shown this once"`
	Expires *time.Time `json:"expires,omitempty" doc:"When the token expires"`
	KID     string     `json:"kid,omitempty" doc:"The kid that the header of the device's JWTs must have; sub must be its id"`
}

func credentialAnswer(c *people.Credential) credential {
	return credential{Token: c.Token, Expires: c.Expires, KID: c.KeyID}
}

type deviceInput struct {
	Body struct {
		CredentialFields
		ID     string   `json:"id,omitempty" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$" doc:"For an admin only; leave it out to have one chosen"`
		Role   string   `json:"role,omitempty" enum:"device,service" default:"device" doc:"A service may subscribe to everything; only an admin makes one"`
		Name   string   `json:"name,omitempty" maxLength:"64"`
		Group  string   `json:"group,omitempty" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$" doc:"The group that it is for; its owner may make it"`
		Groups []string `json:"groups,omitempty" maxItems:"100" doc:"More groups that it is a member of; for an admin only"`
		Pub    []string `json:"acl_pub,omitempty" maxItems:"100" doc:"MQTT topic filters that it may publish to besides the chat; for an admin only"`
		Sub    []string `json:"acl_sub,omitempty" maxItems:"100" doc:"… subscribe to; for an admin only"`
	}
}

type deviceOutput struct {
	Location string `header:"Location"`
	Body     struct {
		Device     people.Device `json:"device"`
		Credential credential    `json:"credential"`
	}
}

func (h *deviceHandlers) createDevice(ctx context.Context, in *deviceInput) (*deviceOutput, error) {
	c := callerOf(ctx)
	b := &in.Body
	if b.Group != "" {
		// It must not be dissolved, which revokes its devices, until there is one more.
		if err := h.groups.Lock(ctx, b.Group); err != nil {
			return nil, err
		}
	}
	if c.Role != authhook.RoleAdmin {
		if b.ID != "" {
			// A free choice would take ids that other issuers' tokens speak of,
			// whatever --registration says.
			return nil, chat.Refuse(chat.CodeNotAllowed, "Only an admin chooses a device's id. Leave id out.")
		}
		if b.Group == "" || b.Role != "device" || b.Groups != nil || b.Pub != nil || b.Sub != nil {
			return nil, chat.Refuse(chat.CodeNotAllowed, "Only an admin makes services, devices without a group, and devices with more rights than one group gives.")
		}
		if err := h.mayManageDevices(ctx, c, b.Group); err != nil {
			return nil, err
		}
	}
	spec := people.DeviceSpec{
		ID: b.ID, Role: authhook.Role(b.Role), Name: b.Name, Group: b.Group, Groups: b.Groups, Pub: b.Pub, Sub: b.Sub,
	}
	if b.Group != "" {
		spec.Groups = append([]string{b.Group}, b.Groups...)
	}
	var err error
	if spec.TTL, spec.Key, err = b.split(); err != nil {
		return nil, err
	}
	device, cred, err := h.people.Devices.Create(ctx, c.Subject, spec)
	if err != nil {
		return nil, err
	}
	out := &deviceOutput{Location: "/v1/devices/" + device.ID}
	out.Body.Device, out.Body.Credential = *device, credentialAnswer(cred)
	return out, nil
}

// mayManageDevices returns nil if the caller may make and manage devices for the group: an
// admin, or the group's owner. Of any other group they get the same answer, whether it
// exists or not.
func (h *deviceHandlers) mayManageDevices(ctx context.Context, c *Caller, group string) error {
	if c.Role == authhook.RoleAdmin {
		return nil
	}
	refused := chat.Refuse(chat.CodeNotAllowed, "Only the owner of a group manages its devices.")
	if group == "" {
		return refused
	}
	err := h.groups.MayManageDevices(ctx, groups.Actor{ID: c.Subject}, group)
	if isRefusal(err) {
		return refused
	}
	return err
}

// visibleDevice returns the device if the caller may see it: an admin, or the owner of its
// group. To others it looks like one that does not exist.
func (h *deviceHandlers) visibleDevice(ctx context.Context, id string) (*people.Device, error) {
	d, err := h.people.Devices.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := h.mayManageDevices(ctx, callerOf(ctx), d.Group); err != nil {
		if isRefusal(err) {
			return nil, chat.Refuse(chat.CodeNotFound, "There is no such device.")
		}
		return nil, err
	}
	return d, nil
}

// manageableDevice returns the device if the caller may manage it: an admin, or the owner of
// its group if it is one that they could have made. A service's token, or one that opens
// other groups, is not theirs to have.
func (h *deviceHandlers) manageableDevice(ctx context.Context, id string) (*people.Device, error) {
	d, err := h.visibleDevice(ctx, id)
	if err != nil || callerOf(ctx).Role == authhook.RoleAdmin {
		return d, err
	}
	if d.Role != string(authhook.RoleDevice) || len(d.Groups) != 1 || d.Groups[0] != d.Group || len(d.Pub)+len(d.Sub) > 0 {
		return nil, chat.Refuse(chat.CodeNotAllowed, "Only an admin manages services, and devices with more rights than one group gives.")
	}
	return d, nil
}

func (h *deviceHandlers) device(ctx context.Context, in *IDPath) (*body[people.Device], error) {
	d, err := h.visibleDevice(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return answer(*d), nil
}

type devicesInput struct {
	Page
	Group string `query:"group" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$" doc:"Only this group's; who is no admin must give it"`
}

func (h *deviceHandlers) devices(ctx context.Context, in *devicesInput) (*body[List[people.Device]], error) {
	if err := h.mayManageDevices(ctx, callerOf(ctx), in.Group); err != nil {
		return nil, err
	}
	var after string
	if _, err := in.after(&after); err != nil {
		return nil, err
	}
	rows, err := h.people.Devices.List(ctx, in.Group, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return answer(listOf(rows, in.Limit, func(d people.Device) any { return d.ID })), nil
}

type renameInput struct {
	IDPath
	Body struct {
		Name string `json:"name" maxLength:"64"`
	}
}

func (h *deviceHandlers) renameDevice(ctx context.Context, in *renameInput) (*body[people.Device], error) {
	if _, err := h.manageableDevice(ctx, in.ID); err != nil {
		return nil, err
	}
	if err := h.people.Devices.Rename(ctx, in.ID, in.Body.Name); err != nil {
		return nil, err
	}
	return h.device(ctx, &in.IDPath)
}

type renewInput struct {
	IDPath
	Body CredentialFields
}

func (h *deviceHandlers) renewDevice(ctx context.Context, in *renewInput) (*body[credential], error) {
	d, err := h.manageableDevice(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if d.Group != "" { // as in createDevice
		if err := h.groups.Lock(ctx, d.Group); err != nil {
			return nil, err
		}
		if _, err := h.manageableDevice(ctx, in.ID); err != nil {
			return nil, err
		}
	}
	ttl, key, err := in.Body.split()
	if err != nil {
		return nil, err
	}
	c, err := h.people.Devices.Renew(ctx, in.ID, ttl, key)
	if err != nil {
		return nil, err
	}
	return answer(credentialAnswer(c)), nil
}

func (h *deviceHandlers) disableDevice(ctx context.Context, in *IDPath) (*empty, error) {
	return h.setDeviceDisabled(ctx, in.ID, true)
}

func (h *deviceHandlers) enableDevice(ctx context.Context, in *IDPath) (*empty, error) {
	return h.setDeviceDisabled(ctx, in.ID, false)
}

func (h *deviceHandlers) setDeviceDisabled(ctx context.Context, id string, disabled bool) (*empty, error) {
	if _, err := h.manageableDevice(ctx, id); err != nil {
		return nil, err
	}
	return nil, h.people.Accounts.SetDisabled(ctx, id, disabled, callerOf(ctx).Role != authhook.RoleAdmin)
}

func (h *deviceHandlers) deleteDevice(ctx context.Context, in *IDPath) (*empty, error) {
	if _, err := h.manageableDevice(ctx, in.ID); err != nil {
		return nil, err
	}
	return nil, h.people.Accounts.Delete(ctx, in.ID)
}
