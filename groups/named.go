package groups

// Named is somebody in a list, whose name and picture are shown with their id.
type Named struct {
	Name   string `json:"name,omitempty" db:"-" doc:"Their name; absent where their profile is not to be seen" example:"Bert"`
	Avatar string `json:"avatar,omitempty" db:"-" doc:"An https address, or the id of an uploaded file"`
}

// Show sets what is shown.
func (n *Named) Show(name, avatar string) { n.Name, n.Avatar = name, avatar }

// Of whom each item of a list is.

// Who returns the contact's id.
func (f *Friend) Who() string { return f.ID }

// Who returns the id of the other side.
func (r *Request) Who() string { return r.ID }

// Who returns the id of who is blocked.
func (b *BlockedPerson) Who() string { return b.ID }

// Who returns the member's id.
func (p *Person) Who() string { return p.ID }

// Who returns the id of who is banned.
func (b *Ban) Who() string { return b.ID }

// Who returns the id of who asks.
func (r *JoinRequest) Who() string { return r.ID }

// Who returns the id of who is invited.
func (i *Invitation) Who() string { return i.ID }
